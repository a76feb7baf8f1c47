"""What a stack has started, written down in its state folder before it is started."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError


class StackError(RuntimeError):
    """The stack did not come up, or did not go down. The message says why, and where to look."""


class StackRecord(BaseModel):
    """What was started, as it stands in the state folder.

    `owns_ray` is False where the application was deployed to a Ray cluster that runs for others, too. Its replicas may
    take `finish_requests_s` to end.
    """

    stack_id: str
    application: str
    base_url: str
    dashboard_url: str | None = None
    owns_ray: bool = True
    finish_requests_s: float = 20.0


def read_record(state_dir: Path) -> StackRecord | None:
    """What was started with this state folder, None when nothing was."""
    try:
        return StackRecord.model_validate_json(record_path(state_dir).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def write_record(state_dir: Path, record: StackRecord) -> None:
    """Replaces the record at once: a reader sees the old one or the new one."""
    path = record_path(state_dir)
    partial = path.with_suffix(".partial")
    partial.write_text(record.model_dump_json(indent=2), encoding="utf-8")
    partial.replace(path)


def remove_record(state_dir: Path) -> None:
    """To be called when nothing of what it names is left."""
    record_path(state_dir).unlink(missing_ok=True)


def record_path(state_dir: Path) -> Path:
    """Where the record of a state folder stands."""
    return state_dir / "stack.json"
