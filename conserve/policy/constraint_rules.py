"""Bounds of what a client may constrain an answer to: schemas, regular expressions, grammars.

The engine compiles them to automata, whose size a few characters can drive to gigabytes: `(a{1000}){1000}` is a million
states. So what is counted here is how many states a pattern asks for, without building any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from conserve.policy.refused_field import RefusedField

LONGEST_PATTERN: Final = 4_096
MOST_STATES: Final = 20_000
LONGEST_GRAMMAR: Final = 65_536
MOST_CHOICES: Final = 4_096
MOST_NODES: Final = 4_096
"""Objects and lists of a schema."""
MOST_REPEATED: Final = 20_000
"""The largest bound of a length or count in a schema, and what the bounds of nested lists multiply to."""
COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")


class ConstraintError(RefusedField):
    """A constraint is too large."""


def check_constraints(body: Mapping[str, Any]) -> None:
    """Checks every constraint in a request's JSON.

    Raises:
        ConstraintError: with the field, and what is allowed.
    """
    for param, value in _list_constraints(body):
        _check_value(param, value)


def _list_constraints(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("structured_outputs", "response_format"):
        if (value := body.get(name)) is not None:
            yield name, value
    # Names of older versions, which may still be understood.
    for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structural_tag"):
        if (value := body.get(name)) is not None:
            yield name, {name.removeprefix("guided_"): value}
    tools = body.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        yield f"tools.{number}", tool


def _check_value(param: str, value: Any) -> None:
    nodes = 0
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        node, repeated = stack.pop()
        nodes += 1
        if nodes > MOST_NODES:
            raise ConstraintError(f"'{param}' has more than {MOST_NODES} objects and lists.", param)
        if isinstance(node, list):
            if len(node) > MOST_CHOICES:
                raise ConstraintError(f"'{param}' has a list of {len(node)}; {MOST_CHOICES} are allowed.", param)
            stack += [(one, repeated) for one in node if isinstance(one, list | dict)]
        elif isinstance(node, dict):
            repeated *= _check_node(param, node, repeated)
            stack += [(one, repeated) for one in node.values() if isinstance(one, list | dict)]


def _check_node(param: str, node: Mapping[str, Any], repeated: int) -> int:
    """Checks one object. Returns how often what is in it may be repeated."""
    for name, one in node.items():
        if not isinstance(one, str):
            continue
        if name in ("pattern", "regex"):
            check_pattern(param, one)
        elif name == "$ref" and not one.startswith("#"):
            raise ConstraintError(f"'{param}': '$ref' must begin with '#', within the schema.", param)
        elif name in ("grammar", "json", "structural_tag") and len(one) > LONGEST_GRAMMAR:
            raise ConstraintError(f"'{param}.{name}' is longer than {LONGEST_GRAMMAR} characters.", param)
    patterns = node.get("patternProperties")
    for pattern in patterns if isinstance(patterns, dict) else ():
        check_pattern(param, pattern)
    counts = [one for name in COUNTS if isinstance(one := node.get(name), int)]
    largest = max(counts, default=1)
    if largest * repeated > MOST_REPEATED:
        raise ConstraintError(
            f"'{param}': bounds of lengths and counts, times those around them, may be {MOST_REPEATED}.", param
        )
    items = [one for name in ("minItems", "maxItems") if isinstance(one := node.get(name), int)]
    return max(1, *items, 1)


def check_pattern(param: str, pattern: str) -> None:
    """Checks a regular expression.

    Raises:
        ConstraintError: it is too long, or asks for too many states.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ConstraintError(f"'{param}': a pattern may have {LONGEST_PATTERN} characters.", param)
    if count_states(pattern) > MOST_STATES:
        raise ConstraintError(f"'{param}': a pattern may repeat {MOST_STATES} characters in all.", param)


def count_states(pattern: str) -> int:
    """About how many states an automaton of a regular expression has: its characters, times their repetitions.

    Whether it is a regular expression at all is for who compiles it to say.
    """
    totals, last = [0], 0  # Of each group that is open; of what a repetition would repeat.
    position, length = 0, len(pattern)
    while position < length:
        character = pattern[position]
        position += 1
        if character == "(":
            totals[-1] += last
            last = 0
            totals.append(0)
            continue
        if character == ")":
            inner = totals.pop() + last if len(totals) > 1 else last
            last = max(1, inner)
            continue
        if character == "{" and (end := pattern.find("}", position)) > 0:
            numbers = [int(one) for one in pattern[position:end].split(",") if one.strip().isdecimal()]
            if numbers:
                last = min(last * max(1, *numbers, 1), 10 * MOST_STATES)
                position = end + 1
                continue
        if character in "*+?|":
            continue
        totals[-1] += last
        last = 1
        if character == "\\":
            position += 1
        elif character == "[":
            position = _skip_class(pattern, position)
    return sum(totals) + last


def _skip_class(pattern: str, position: int) -> int:
    """The position behind a class of characters; a `]` that comes first belongs to it."""
    if position < len(pattern) and pattern[position] == "^":
        position += 1
    if position < len(pattern) and pattern[position] == "]":
        position += 1
    while position < len(pattern) and pattern[position] != "]":
        position += 2 if pattern[position] == "\\" else 1
    return position + 1
