"""What a stack has started, written down in its state folder before it is started."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from conserve.launch.paths import ray_temp_dir
from conserve.launch.private_file import write_private

RECORD_VERSION = 1
"""Of the records that this program writes. One may gain fields without a new version, but none may change or go."""


class StackError(RuntimeError):
    """The stack did not come up, or did not go down. The message says why, and where to look."""


class StackRecord(BaseModel):
    """What was started, as it stands in the state folder.

    `owns_ray` is False where the application was deployed to a Ray cluster that runs for others, too. Its replicas may
    take `finish_requests_s` to end. `tls_certificate` is the file that HTTP and gRPC are encrypted with.
    """

    version: int = RECORD_VERSION
    stack_id: str
    application: str
    base_url: str
    dashboard_url: str | None = None
    owns_ray: bool = True
    finish_requests_s: float = 20.0
    tls_certificate: str | None = None


def read_record(state_dir: Path) -> StackRecord | None:
    """What was started with this state folder, None when nothing was.

    Raises:
        StackError: the record is damaged, or of a newer version.
        OSError: it cannot be read.
    """
    path = record_path(state_dir)
    try:
        record = StackRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise StackError(
            f"{path} is damaged, and with it what is known of an earlier start. If Ray still runs from it (`ps` shows "
            f"processes with {ray_temp_dir(state_dir)} in their command), end that. Then delete the file."
        ) from None
    if record.version > RECORD_VERSION:
        raise StackError(
            f"{path} was written by a newer version of ConServe: take the stack down (`conserve down`) with that one."
        )
    return record


def write_record(state_dir: Path, record: StackRecord) -> None:
    """Replaces the record at once: a reader sees the old one or the new one."""
    write_private(record_path(state_dir), record.model_dump_json(indent=2))


def remove_record(state_dir: Path) -> None:
    """To be called when nothing of what it names is left."""
    record_path(state_dir).unlink(missing_ok=True)


def record_path(state_dir: Path) -> Path:
    """Where the record of a state folder stands."""
    return state_dir / "stack.json"
