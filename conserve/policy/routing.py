"""Which replica an online request goes to: that with the lowest predicted time to its first token, of some.

Replicas say some times a second what a request would find there (`Outlook`). In between a router counts what it has
itself sent: without that, all requests between two reports would go where the last one was good news. It draws two
replicas and takes the better one (power of two choices, Mitzenmacher 1996), since other routers see the same reports;
those that remember the beginning of the prompt are asked, too, and have that much less to compute.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from conserve.policy.outlook import Outlook, predict_ttft_ms
from conserve.policy.prefix_memory import PrefixMemory, Prompt

Key = TypeVar("Key", bound=Hashable)

CHOICES: Final = 2
"""So many replicas are compared: with more, routers that do not know of each other all go to the same ones."""
CHOICES_ALONE: Final = 4
"""So many by the only router that sends requests, which counts them all."""
MOST_DRAWN: Final = 8
"""So many are drawn until there are two of them that a request can go to."""
LEAST_FRESH_SHARE: Final = 0.5
"""With fewer of those drawn that report, the few are not all sent to."""


class _Sent(NamedTuple):
    number: int
    tokens: float
    at_s: float


@dataclass(slots=True)
class _Known:
    """What is known of a replica. `ahead_ms` is the time of the prompts there at `counted_s`."""

    outlook: Outlook
    reported_s: float
    ahead_ms: float
    counted_s: float
    sent: dict[Hashable, _Sent] = field(default_factory=dict)

    def count_ahead_ms(self, now_s: float) -> float:
        left_ms = self.ahead_ms - (now_s - self.counted_s) * 1e3
        return left_ms if left_ms > 0.0 else 0.0

    def add(self, tokens: float, now_s: float) -> None:
        self.ahead_ms = self.count_ahead_ms(now_s) + tokens * self.outlook.token_ms
        self.counted_s = max(now_s, self.counted_s)

    def has_room(self, tokens: float) -> bool:
        slots, memory = self.outlook.free_slots - len(self.sent), self.outlook.free_kv_tokens - tokens
        return slots >= 1 and memory >= sum([one.tokens for one in self.sent.values()])


class TtftRouter(Generic[Key]):
    """Decides for the requests of one process.

    Args:
        stale_after_s: Reports older than this say nothing.
        generator: Draws.
        choices: So many replicas are compared; None for as many as is good, see `is_alone`.
    """

    def __init__(self, stale_after_s: float, generator: random.Random, choices: int | None = None) -> None:
        self._stale_after_s = stale_after_s
        self._random = generator
        self._choices = choices
        self._known: dict[Key, _Known] = {}
        self._prefixes: PrefixMemory[Key] = PrefixMemory()
        self._goes_to: dict[Hashable, Key] = {}
        self.number = 0
        """Of the latest request."""
        self.is_alone = False
        """Whether there is no other router, as far as replicas know."""

    # What is known.

    def report(self, replica: Key, outlook: Outlook, received: int, now_s: float) -> None:
        """A replica has said something new.

        Args:
            replica: Which.
            outlook: What it says.
            received: The highest number of a request of this router that it had when it said so; see `note_sent`.
            now_s: Now.
        """
        before = self._known.get(replica)
        ahead_ms = outlook.prompt_tokens * outlook.token_ms
        known = self._known[replica] = _Known(outlook, now_s, ahead_ms, now_s)
        if before is not None:
            for request_id, sent in before.sent.items():
                # What never arrives is not waited for.
                if sent.number > received and now_s - sent.at_s < self._stale_after_s:
                    known.sent[request_id] = sent
                    known.add(sent.tokens, now_s)
                else:
                    del self._goes_to[request_id]

    def retain(self, replicas: Collection[Key]) -> None:
        """Forgets all but these."""
        for replica in self._known.keys() - replicas:
            for request_id in self._known.pop(replica).sent:
                del self._goes_to[request_id]

    def next_number(self) -> int:
        """A number for a request; they go up."""
        self.number += 1
        return self.number

    def note_sent(self, replica: Key, request_id: Hashable, number: int, prompt: Prompt, now_s: float) -> float:
        """A request goes to a replica. If it was to go to another one before, it does not.

        Returns:
            Tokens of its prompt that the replica has probably to compute.
        """
        self.forget(request_id)
        cached = self._prefixes.find(prompt, now_s).get(replica, 0.0) if prompt.cuts else 0.0
        tokens = max(1.0, prompt.tokens - cached)
        self._count(replica, request_id, _Sent(number, tokens, now_s), now_s)
        self.note_prefix(replica, prompt, now_s)
        return tokens

    def move(self, request_id: Hashable, replica: Key, now_s: float) -> None:
        """A request has gone to this replica in the end."""
        before = self._goes_to.get(request_id)
        if before is not None and before != replica:
            sent = self._known[before].sent[request_id]
            self.forget(request_id)
            self._count(replica, request_id, sent, now_s)

    def _count(self, replica: Key, request_id: Hashable, sent: _Sent, now_s: float) -> None:
        known = self._known.get(replica)
        if known is not None:
            known.sent[request_id] = sent
            known.add(sent.tokens, now_s)
            self._goes_to[request_id] = replica

    def note_prefix(self, replica: Key, prompt: Prompt, now_s: float) -> None:
        """A replica computes a prompt, and can be asked for its beginning from now on."""
        if prompt.cuts:
            self._prefixes.add(prompt, replica, now_s)

    def forget(self, request_id: Hashable) -> None:
        """A request has ended, or goes nowhere. What it took of the replica's time stays counted until it reports."""
        replica = self._goes_to.pop(request_id, None)
        if replica is not None:
            del self._known[replica].sent[request_id]

    # Decisions.

    def choose(
        self,
        candidates: Sequence[Key],
        prompt: Prompt,
        now_s: float,
        look: Callable[[Key], Outlook] | None = None,
    ) -> list[Key]:
        """The replicas that were compared, the best first; none if too few of those drawn report.

        Args:
            candidates: All that take requests, at least one.
            prompt: Of the request.
            now_s: Now.
            look: Asks a replica at once, in place of its last report.
        """
        choices = self._choices or (CHOICES_ALONE if self.is_alone else CHOICES)
        remembered = self._prefixes.find(prompt, now_s) if prompt.cuts else {}
        compared: list[tuple[float, Key]] = []
        crowded: list[tuple[float, Key]] = []
        drawn: list[int] = []
        fresh = 0
        count = len(candidates)
        for _ in range(min(count, MOST_DRAWN)):
            replica = candidates[self._draw(count, drawn)]
            if not self._weigh(replica, prompt.tokens - remembered.get(replica, 0.0), now_s, look, compared, crowded):
                continue
            fresh += 1
            if len(compared) == choices:
                break
        if fresh < LEAST_FRESH_SHARE * len(drawn) or not fresh:
            return []
        if remembered:
            seen = {candidates[index] for index in drawn}
            for replica, cached in remembered.items():
                if replica not in seen and replica in candidates:
                    self._weigh(replica, prompt.tokens - cached, now_s, look, compared, crowded)
        # Sorting is stable, so that the order of the draw decides among equals.
        compared.sort(key=_first)
        crowded.sort(key=_first)
        return [replica for _, replica in compared + crowded]

    def predict_ttft_ms(self, replica: Key, prompt: Prompt, now_s: float) -> float | None:
        """Time to the first token of a request at a replica, none of which is cached; None if it does not report."""
        known = self._find(replica, now_s)
        if known is None:
            return None
        return predict_ttft_ms(known.outlook, known.count_ahead_ms(now_s), prompt.tokens)

    def _weigh(
        self,
        replica: Key,
        tokens: float,
        now_s: float,
        look: Callable[[Key], Outlook] | None,
        compared: list[tuple[float, Key]],
        crowded: list[tuple[float, Key]],
    ) -> bool:
        """Adds a replica to those where a request has room, or to the others; False if nothing is known of it."""
        tokens = max(1.0, tokens)
        # What is asked at once has nothing sent to it that it does not know of.
        if look is not None:
            outlook = look(replica)
            ahead_ms = outlook.prompt_tokens * outlook.token_ms
            has_room = outlook.free_slots >= 1 and outlook.free_kv_tokens >= tokens
        else:
            known = self._find(replica, now_s)
            if known is None:
                return False
            outlook, ahead_ms, has_room = known.outlook, known.count_ahead_ms(now_s), known.has_room(tokens)
        (compared if has_room else crowded).append((predict_ttft_ms(outlook, ahead_ms, tokens), replica))
        return True

    def _find(self, replica: Key, now_s: float) -> _Known | None:
        known = self._known.get(replica)
        return known if known is not None and now_s - known.reported_s <= self._stale_after_s else None

    def _draw(self, count: int, drawn: list[int]) -> int:
        """One of `count` that has not been drawn, which is added to those that have."""
        index = int(self._random.random() * count)
        while index in drawn:
            index = int(self._random.random() * count)
        drawn.append(index)
        return index


def _first(pair: tuple[float, object]) -> float:
    return pair[0]
