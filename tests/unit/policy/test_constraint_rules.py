"""What an answer may be constrained to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve.policy.constraint_rules import MOST_STATES, ConstraintError, check_constraints, count_states


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}}


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        ("", 0),
        ("abc", 3),
        (r"\d{4}-\d{2}-\d{2}", 10),
        ("[a-z]{10}", 10),
        ("[]{}]{10}", 10),
        (r"[\]]{3}", 3),
        ("(ab){5}", 10),
        ("((a{10}){10}b){2}", 202),
        ("a{2,7}", 7),
        ("a{3,}", 3),
        ("a|bc*", 3),
        ("(", 0),
        (")))", 1),
        ("a{", 2),
        ("a{x}", 4),
        ("(?:ab)+", 3),
    ],
)
def test_states_are_counted(pattern: str, states: int) -> None:
    assert count_states(pattern) == states


@given(st.text(alphabet=r"ab(){}[]\*+?|,0123456789^-", max_size=60))
def test_whatever_a_pattern_is_it_is_counted(pattern: str) -> None:
    assert count_states(pattern) >= 0


@pytest.mark.parametrize(
    "pattern", ["(a{1000}){1000}", "((((a{99}){99}){99}){99}){99}", "a{99999999999999999999}", "x" * 5_000]
)
def test_patterns_that_blow_up_are_refused_wherever_they_are(pattern: str) -> None:
    for body in (
        {"structured_outputs": {"regex": pattern}},
        {"guided_regex": pattern},
        schema({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}),
        schema({"type": "object", "patternProperties": {pattern: {}}}),
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"pattern": pattern}}}]},
    ):
        with pytest.raises(ConstraintError) as caught:
            check_constraints(body)
        assert caught.value.param


@pytest.mark.parametrize(
    "value",
    [
        {"$ref": "http://127.0.0.1/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"type": "array", "maxItems": 200, "items": {"type": "array", "maxItems": 200}},
        {"type": "string", "maxLength": 10**9},
        {"anyOf": [{"type": "string"}] * 5_000},
        {"properties": {str(number): {"type": "object"} for number in range(5_000)}},
    ],
)
def test_schemas_that_are_too_large_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ConstraintError):
        check_constraints(schema(value))


def test_grammars_have_a_length() -> None:
    check_constraints({"structured_outputs": {"grammar": "root ::= 'a'"}})
    with pytest.raises(ConstraintError, match="65536"):
        check_constraints({"structured_outputs": {"grammar": "x" * 70_000}})


def test_usual_constraints_pass() -> None:
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 200},
            "born": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
            "tags": {"type": "array", "maxItems": 20, "items": {"type": "string", "maxLength": 50}},
            "parent": {"$ref": "#/$defs/person"},
        },
        "required": ["name"],
    }
    check_constraints(schema(person))
    check_constraints(
        {"structured_outputs": {"choice": ["yes", "no"]}, "tools": [{"function": {"parameters": person}}]}
    )
    check_constraints({"response_format": {"type": "json_object"}, "tools": None, "structured_outputs": None})


def test_no_product_overflows() -> None:
    assert count_states("(" * 50 + "a" + "{99})" * 50) >= MOST_STATES
