"""Settings of offline work: how much of it runs, and its queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from conserve.config.redis_url import EMBEDDED_REDIS, check_redis_url, find_password
from conserve.config.section import Section as _Section


class HarvestSettings(_Section):
    """How much batch work runs beside online work."""

    enabled: bool = Field(True, description="Whether batch work runs at all.")
    max_window: int = Field(8, ge=0, le=4096, description="Offline requests in flight on one replica, at most.")
    shut_at_online_requests: int = Field(
        8,
        ge=1,
        description="Where the replica does not report what it can do beside its online load (stock engine, or nothing "
        "learnt yet), the window shuts when this many online requests are running or waiting on it.",
    )
    open_at_online_requests: int = Field(
        4, ge=0, description="A shut window opens again when no more than this many online requests are there."
    )
    shut_at_kv_usage: float = Field(0.85, gt=0, le=1, description="The window shuts at this share of KV blocks in use.")
    open_at_kv_usage: float = Field(0.6, ge=0, le=1, description="A shut window opens again at this share.")
    slo_attainment: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Share of the online tokens computed beside offline ones that are to come in time; with fewer the "
        "window narrows, to a quarter at most. 0: never.",
    )
    report_period_ms: int = Field(250, ge=20, le=10_000, description="Time between capacity reports and allotments.")
    allotment_ttl_ms: int = Field(5_000, ge=100, le=600_000, description="A replica goes alone when older than this.")
    hand_back_s: float = Field(
        5.0,
        gt=0,
        le=600,
        description="A replica that is told to go gives its offline requests back within so long; what it cannot give "
        "back, with Redis away for example, is freed when its lease runs out.",
    )
    deadline_floor: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of `max_window` that batches which will be late may take even where the window is shut, in "
        "whole requests; 0: they go before other batches, but never where the window is shut.",
    )

    scale_for_deadlines: int = Field(
        0,
        ge=0,
        le=1024,
        description="So many replicas may be started, beyond those for online load, while batches will miss completion "
        "windows that they were promised (`jobs.admission`).",
    )

    @model_validator(mode="after")
    def _check_hysteresis(self) -> HarvestSettings:
        if self.open_at_online_requests >= self.shut_at_online_requests:
            raise ValueError("`open_at_online_requests` must be less than `shut_at_online_requests`")
        if self.open_at_kv_usage >= self.shut_at_kv_usage:
            raise ValueError("`open_at_kv_usage` must be less than `shut_at_kv_usage`")
        if self.allotment_ttl_ms < 2 * self.report_period_ms:
            raise ValueError("`allotment_ttl_ms` must be at least twice `report_period_ms`")
        return self


class JobsSettings(_Section):
    """The durable offline queue and its files."""

    redis_url: str = Field(
        EMBEDDED_REDIS,
        repr=False,
        description="`embedded` (a server in the state folder), or a `redis://`, `rediss://` (TLS) or `unix://` URL. "
        "Its password may stand in the variable, not in the file: see `jobs.redis_password_file`.",
    )
    redis_password_file: Path | None = Field(
        None,
        description="File with the password of Redis, on each node, of the user that `jobs.redis_url` names. Read at "
        "each connect.",
    )
    namespace: str = Field(
        "conserve", pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="Prefix of every key, one per deployment."
    )
    files_url: str | None = Field(
        None, description="Folder or fsspec URL of input and output files; `files` in the state folder by default."
    )
    lease_ms: int = Field(
        15_000, ge=200, le=3_600_000, description="A claimed request not renewed for so long is freed."
    )
    max_attempts: int = Field(5, ge=1, le=100, description="Times a request is tried before it goes to the error file.")
    retry_delay_s: float = Field(
        1.0, ge=0, le=3_600, description="Before the second attempt, at most; twice as long before each further one."
    )
    max_retry_delay_s: float = Field(60.0, ge=0, le=86_400, description="Before any attempt, at most.")
    max_retry_time_s: float = Field(
        86_400,
        gt=0,
        description="No attempt begins later than so long after the beginning of the first; waiting counts, too, so no "
        "less than the completion windows that are usual.",
    )
    suspicions: int = Field(
        2,
        ge=1,
        le=100,
        description="Attempts that end with the end of the engine or replica, or run out of time, until the request is "
        "run alone; one that ends like that again goes to the error file.",
    )
    request_timeout_s: float = Field(3_600, gt=0, description="One attempt at an offline request, at most.")
    commit_period_ms: int = Field(250, ge=1, le=60_000, description="Finished results are gathered for so long.")
    journal_tokens: int = Field(
        32,
        ge=0,
        le=4_096,
        description="Tokens of an offline request are journaled when so many are new; 0: nothing is journaled, and a "
        "request that loses its replica begins anew.",
    )
    journal_period_s: float = Field(
        2.0, ge=0, le=3_600, description="And every so often, if anything is new; 0: only when `journal_tokens` are."
    )
    input_files_kept_s: int | None = Field(
        2_592_000, ge=3_600, description="Input files are deleted after so long, unless uploaded with `expires_after`."
    )
    batches_kept_s: int | None = Field(
        90 * 86_400,
        ge=3_600,
        description="A batch is forgotten so long after its end; its output files stay until they expire. None: it is "
        "kept for ever.",
    )
    max_file_bytes: int = Field(200_000_000, ge=1, description="Size of an uploaded file.")
    max_batch_requests: int = Field(50_000, ge=1, description="Lines of one batch.")
    max_line_bytes: int = Field(10_000_000, ge=1_000, description="Length of one line of a batch.")
    max_active_batches: int = Field(1_000, ge=1, description="Batches not yet ended; a further one is refused (429).")
    max_result_streams: int = Field(
        64, ge=1, description="Streams of results that are open at once; a further one is refused (429)."
    )
    max_uploads: int = Field(
        16, ge=1, description="Files that are uploaded at once, to one front; a further one is refused (429)."
    )
    max_window_s: int = Field(30 * 86_400, ge=60, description="Longest completion window.")
    admission: Literal["refuse", "warn", "off"] = Field(
        "refuse",
        description="What becomes of a batch that does not fit its window on the capacity seen lately: it is refused "
        "with the earliest window that fits, or taken with a warning; `off`: nobody looks.",
    )
    forecast_quantile: float = Field(
        0.005,
        gt=0,
        le=0.5,
        description="Share of forecasts of capacity that may be too high: the smaller, the less is promised.",
    )

    @field_validator("admission", mode="before")
    @classmethod
    def _read_off(cls, value: Any) -> Any:
        return "off" if value is False else value  # As YAML 1.1 reads `off`.

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str) -> str:
        return check_redis_url(value)

    @field_validator("redis_password_file")
    @classmethod
    def _make_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _check_password(self) -> JobsSettings:
        if self.redis_password_file is not None:
            if self.redis_url == EMBEDDED_REDIS:
                raise ValueError("`redis_password_file` is for a `redis_url` of your own; the embedded server has none")
            if find_password(self.redis_url) is not None:
                raise ValueError("the password is in `redis_url`, too: leave it out there, or `redis_password_file`")
        return self

    @model_validator(mode="after")
    def _check_delays(self) -> JobsSettings:
        if self.retry_delay_s > self.max_retry_delay_s:
            raise ValueError("`retry_delay_s` must not be more than `max_retry_delay_s`")
        return self
