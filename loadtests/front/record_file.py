"""The records that a locust process leaves behind for the report: JSON lines, written as they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from loadtests.chat_record import ChatRecord


class RecordFileError(ValueError):
    """A line is no record; the message names the file and the line."""


@dataclass(frozen=True)
class BatchRecord:
    """What happened to one batch. Times are seconds of the clock of `ChatRecord`.

    Attributes:
        batch_id: As the server named it; None when it could not be created.
        intended_s: When it was meant to be submitted.
        created_s: When the server had accepted it.
        ended_s: When it was seen to have ended, or was given up.
        status: The last one that was seen; `given up` for one that was cancelled at the end of the load.
        total, completed, failed: Requests.
        polls: How often its status was asked for.
        error: What went wrong, or None.
    """

    batch_id: str | None
    intended_s: float
    created_s: float | None
    ended_s: float
    status: str
    total: int = 0
    completed: int = 0
    failed: int = 0
    polls: int = 0
    error: str | None = None


class _ChatLine(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["chat"] = "chat"
    record: ChatRecord


class _BatchLine(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["batch"] = "batch"
    record: BatchRecord


class _StartLine(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["start"] = "start"
    start_s: float


_LINE: TypeAdapter[_ChatLine | _BatchLine | _StartLine] = TypeAdapter(
    Annotated[_ChatLine | _BatchLine | _StartLine, Field(discriminator="kind")]
)


@dataclass
class Records:
    """All records of a load; `start_s` is when its first second began."""

    start_s: float = 0.0
    chats: list[ChatRecord] = field(default_factory=list)
    batches: list[BatchRecord] = field(default_factory=list)


class RecordWriter:
    """Writes records into a file, which it begins anew; without a path it only keeps them.

    `kept` has all of them, in memory.
    """

    def __init__(self, path: Path | None, start_s: float) -> None:
        self.kept = Records(start_s)
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        self._write(_StartLine(start_s=start_s))

    def add_chat(self, record: ChatRecord) -> None:
        """Keeps and writes a record."""
        self.kept.chats.append(record)
        self._write(_ChatLine(record=record))

    def add_batch(self, record: BatchRecord) -> None:
        """Keeps and writes a record."""
        self.kept.batches.append(record)
        self._write(_BatchLine(record=record))

    def close(self) -> None:
        """Ends the file; nothing can be added any more."""
        if self._file is not None:
            self._file.close()

    def _write(self, line: _ChatLine | _BatchLine | _StartLine) -> None:
        if self._file is not None and not self._file.closed:
            self._file.write(line.model_dump_json() + "\n")
            self._file.flush()


def read_records(path: Path) -> Records:
    """Reads a file of records, chats in the order in which they were meant to be sent.

    Raises:
        RecordFileError: a line is no record.
        OSError: it cannot be read.
    """
    records = Records()
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                line = _LINE.validate_json(text)
            except ValidationError as error:
                raise RecordFileError(f"{path}: line {number}: {error.errors()[0]['msg']}") from None
            if isinstance(line, _ChatLine):
                records.chats.append(line.record)
            elif isinstance(line, _BatchLine):
                records.batches.append(line.record)
            else:
                records.start_s = line.start_s
    records.chats.sort(key=lambda record: record.intended_s)
    return records
