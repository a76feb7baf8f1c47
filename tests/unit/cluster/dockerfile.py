"""Reads a Dockerfile into stages, as far as ours goes: no heredocs, no escapes but line continuations."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: its name, its options (`--from=build`: `{"from": "build"}`; the last of several), the rest."""

    name: str
    options: dict[str, str]
    rest: str

    def words(self) -> list[str]:
        """The rest as words: in the JSON form, or as a shell would split it."""
        return json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)


@dataclass
class Stage:
    """A stage, what it is built on, and its instructions."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


def read_stages(path: Path) -> dict[str, Stage]:
    """All stages by name, in their order."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        options: dict[str, str] = {}
        while match := re.match(r"\s*--([a-z-]+)(?:=(\S+))?\s+", rest):
            options[match[1]] = match[2] or ""
            rest = rest[match.end() :]
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            stages[stage] = Stage(stage, base)
        else:
            list(stages.values())[-1].instructions.append(Instruction(name, options, rest.strip()))
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Instruction]:
    """The instructions of a stage, after those of the stages that it is built on."""
    stage = stages[name]
    inherited = lineage(stages, stage.base) if stage.base in stages else []
    return [*inherited, *stage.instructions]


def environment(instructions: list[Instruction]) -> dict[str, str]:
    """What `ENV` sets, variables of Docker's base images not resolved."""
    words = (word for each in instructions if each.name == "ENV" for word in each.words())
    return dict(word.split("=", 1) for word in words)
