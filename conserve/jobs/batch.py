"""States of batches and of their requests, and the objects of the OpenAI Batch and Files APIs.

Shapes: https://platform.openai.com/docs/api-reference/batch/object and .../files/object.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Literal

import msgspec
from pydantic import BaseModel, Field

from conserve.config import DEFAULT_TENANT
from conserve.policy.request_size import UNKNOWN_REQUEST_TOKENS, mean_request_tokens

BATCH_ID = re.compile(r"batch_[A-Za-z0-9]{8,64}")
FILE_PURPOSES = ("batch", "batch_output")
FILE_ID = re.compile(r"file-[A-Za-z0-9]{8,64}")
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100


class BatchStatus(StrEnum):
    """Where a batch is on its way, as clients see it."""

    VALIDATING = "validating"  # Accepted; its input file is being checked and put into the queue.
    FAILED = "failed"  # The input file was not valid; nothing was run. Ended.
    IN_PROGRESS = "in_progress"  # Replicas claim its requests.
    FINALIZING = "finalizing"  # No more results are taken; the output and error files are being assembled.
    COMPLETED = "completed"  # Every request ran; the files are ready. Ended.
    EXPIRED = "expired"  # The completion window ended first; what was done is in the output file. Ended.
    CANCELLING = "cancelling"  # Cancelled by the client; running requests may still end for one lease period.
    CANCELLED = "cancelled"  # Cancelled; what was done is in the output file. Ended.

    @property
    def ended(self) -> bool:
        """True when nothing about the batch will change any more."""
        return self in _ENDED


_ENDED = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class RequestState(StrEnum):
    """Where one line of a batch is. Not stored as such: it follows from the keys in which the line stands.

    Each move is one atomic script. It changes nothing where it finds another state or a newer claim:

    | move | from | to | by |
    | --- | --- | --- | --- |
    | start | (being validated) | ready, all lines at once | the keeper |
    | claim | ready, or delayed and due | leased | a replica |
    | begin, renew | leased | leased | the replica whose lease it is |
    | release | leased | ready, or delayed and due when it is to be run alone | the same; no attempt is counted |
    | retry | leased | delayed, or failed when it is given up | the same, or the keeper once the lease has run out |
    | commit | leased; also ready or delayed, as long as the claim is the newest | completed or failed | the same |

    `journal` moves nothing: it adds to what the next claim gets, and needs the newest claim, as `commit` does.
    `cancel` and `expire` move the whole batch: from then on nothing is claimed, and once its results are frozen what is
    neither completed nor failed goes to the error file as `batch_cancelled` or `batch_expired`.
    """

    READY = "ready"  # In the queue, to be claimed.
    LEASED = "leased"  # Claimed by a replica, until that ends it or its lease runs out and is taken away.
    DELAYED = "delayed"  # An attempt has failed; it can be claimed again when its delay is over.
    COMPLETED = "completed"  # A result of the model is committed; it goes to the output file. Ended.
    FAILED = "failed"  # An error is committed; it goes to the error file. Ended.


class FlexKind(StrEnum):
    """How the HTTP request of a flex request waits for it."""

    WHOLE = "whole"  # For the whole answer.
    STREAMED = "streamed"  # For each token.


class BatchEndpoint(StrEnum):
    """Endpoints whose requests a batch may hold."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


ENDPOINTS_BY_TASK = {
    "generate": (BatchEndpoint.CHAT_COMPLETIONS, BatchEndpoint.COMPLETIONS),
    "embed": (BatchEndpoint.EMBEDDINGS,),
}
"""What models can be asked for, by the task that they are served for (`model.task`)."""


class BatchError(BaseModel):
    """One thing that is wrong with an input file. `line` counts from 1.

    `earliest_completion_window` is not OpenAI's: with `window_too_short`, the shortest window that would do.
    """

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    earliest_completion_window: str | None = None


class BatchErrors(BaseModel):
    """Everything that was found wrong with an input file (a limited number of entries)."""

    object: Literal["list"] = "list"
    data: list[BatchError] = Field(default_factory=list)


class RequestCounts(BaseModel):
    """Requests of a batch. `failed` are those that stand in its error file."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputTokensDetails(BaseModel):
    """Part of `BatchUsage`."""

    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Part of `BatchUsage`."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Tokens of all committed requests of a batch."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0


class Batch(BaseModel):
    """The Batch object. Times are Unix seconds by the clock of the Redis server.

    Not OpenAI's are the fields from `priority` on; `tenant`, `flex` and `traceparent`
    are not shown:

    - Batches of higher `priority` go first, and of one that was paused at `paused_at` no further request is begun.
    - `predicted_end_at` is when it will be done by all that is known now; null where that is nothing, and of what is
      paused or has ended.
    - `admission` says whether it was found to fit its window: `fits`; `unknown`, too little was seen yet;
      `window_too_short`, it was taken with that warning; null, nobody has looked.
    - `deadline_backed_by` says what its window is promised on, if it fits: `floor`, a share of the engine's time beside
      any online load when it is late; `forecast`, only that online load leaves as much as was foreseen.
    - `earliest_completion_window` is with that warning the shortest window that would have done; null if none that is
      allowed would.
    - `delayed_because` says why it does not get on at the moment, a full disk for example; it is tried again and again.
    - `tenant` is whose it is, `flex` how its one request is waited for, `traceparent` the span in which it was handed
      in, if that was recorded.
    """

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    usage: BatchUsage = BatchUsage()
    metadata: dict[str, str] | None = None
    priority: int = 0
    paused_at: int | None = None
    predicted_end_at: int | None = None
    admission: Literal["fits", "unknown", "window_too_short"] | None = None
    deadline_backed_by: Literal["forecast", "floor"] | None = None
    earliest_completion_window: str | None = None
    delayed_because: str | None = None
    tenant: str = Field(DEFAULT_TENANT, exclude=True)
    flex: FlexKind | None = Field(None, exclude=True)
    traceparent: str | None = Field(None, exclude=True)


class BatchList(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileObject(BaseModel):
    """The File object. `created_at` is Unix seconds; `tenant`, whose it is, is not shown."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    expires_at: int | None = None
    tenant: str = Field(DEFAULT_TENANT, exclude=True)


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FileDeleted(BaseModel):
    """The answer to deleting a file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class ActiveBatch(msgspec.Struct, frozen=True, gc=False):
    """What the controller and the keeper know of a batch that has not ended. Times are Unix milliseconds.

    `ready` (can be claimed now) and `leased` are requests; `ready` may count some that a late commit has settled.
    `outcome` is the status the batch will end with, from the moment its results are frozen. Of a `paused` batch nothing
    can be claimed. `output_expires_after_s` is counted from the creation of the output files; None: they stay.
    `prompt_tokens` and `completion_tokens` are those of its committed requests, `tokens_guessed` what one was expected
    to take at first, `work_tokens` what it is taken for in all; its input file has `file_bytes`, of which
    `prompt_bytes` are the text of prompts (0: not known). Of two batches with the same `prefix` the prompts begin
    alike. Since `let_go_at_ms` nobody waits for a flex request. One that is `delayed` has a `delayed_because`.
    `promised` is a batch that was found to fit its window.
    """

    batch_id: str
    status: BatchStatus
    created_at_ms: int
    expires_at_ms: int
    cancelling_at_ms: int | None
    endpoint: str
    input_file_id: str
    model: str | None
    total: int
    completed: int
    failed: int
    ready: int
    leased: int
    outcome: BatchStatus | None
    priority: int = 0
    paused: bool = False
    output_expires_after_s: int | None = None
    tenant: str = DEFAULT_TENANT
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_guessed: int = UNKNOWN_REQUEST_TOKENS
    work_tokens: int = 0
    file_bytes: int = 0
    prompt_bytes: int = 0
    prefix: str = ""
    flex: FlexKind | None = None
    let_go_at_ms: int | None = None
    delayed: bool = False
    promised: bool = False

    @property
    def tokens_used(self) -> int:
        """Tokens of all its requests that are done."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def request_tokens(self) -> float:
        """What one of its requests takes, prompt and output, on average."""
        return mean_request_tokens(self.tokens_guessed, self.completed + self.failed, self.tokens_used)
