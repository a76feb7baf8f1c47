"""What happened to one streamed chat of a load."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class ChatRecord:
    """What happened to one request. Times are seconds of one monotonic clock.

    Attributes:
        intended_s: When it was meant to be sent.
        sent_s: When it was sent.
        content_s: When each piece of content came (one token each, unless the server joined some).
        ended_s: When the answer was complete or had failed.
        prompt_tokens: As the server counted them; None when it did not say.
        output_tokens: As the server counted them; None when it did not say.
        error: What went wrong, or None.
    """

    intended_s: float
    sent_s: float
    content_s: tuple[float, ...]
    ended_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None

    @property
    def ttft_ms(self) -> float | None:
        """Time from the intended send to the first content, if any came."""
        return (self.content_s[0] - self.intended_s) * 1e3 if self.content_s else None

    @property
    def tbt_ms(self) -> tuple[float, ...]:
        """Gaps between pieces of content."""
        return tuple((later - earlier) * 1e3 for earlier, later in pairwise(self.content_s))

    @property
    def send_lag_ms(self) -> float:
        """How far the client itself was behind."""
        return (self.sent_s - self.intended_s) * 1e3
