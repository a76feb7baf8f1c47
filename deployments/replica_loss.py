"""What becomes of online requests whose replica ends or falls silent.

They are asked once more if nothing was sent yet, and otherwise end with an error event.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, TypeVar

import structlog
from ray.exceptions import RayActorError

from conserve.engine.contract import EngineDied, EngineGone
from deployments.pulse import ReplicaSilent

log = structlog.get_logger(__name__)

ATTEMPTS: Final = 2
LOST_CODE: Final = "replica_lost"
LOST_MESSAGE: Final = "The replica that worked on the request was lost."
GONE_PAUSE_S: Final = 0.25
MOST_GONE: Final = 40
"""A replica whose engine has ended refuses requests until Serve knows that it is gone: asked so often, ten seconds."""


class ReplicaLost(RuntimeError):
    """Each replica that was asked ended, or fell silent, before its first token."""


class AnswerBroken(RuntimeError):
    """The replica ended in the middle of its answer."""


Part = TypeVar("Part")


async def ask_again(
    ask: Callable[[], AsyncGenerator[Part, None]], on_retry: Callable[[], None] = lambda: None
) -> AsyncGenerator[Part, None]:
    """Passes an answer on. If its replica ends before the first part of it, another one is asked, once.

    Args:
        ask: Sends the request to a replica that the router chooses; Serve drops those that have ended.
        on_retry: Called before another one is asked.

    Raises:
        AnswerBroken: its replica has ended later.
        ReplicaLost: the second one has ended, too.
    """
    attempts = gone = 0
    while True:
        has_begun = False
        try:
            async with aclosing(ask()) as responses:
                async for response in responses:
                    has_begun = True
                    yield response
            return
        except (RayActorError, EngineDied, EngineGone, ReplicaSilent) as error:
            if has_begun:
                log.warning("a replica ended in the middle of an answer", error=type(error).__name__)
                raise AnswerBroken(LOST_MESSAGE) from error
            # The request was not tried: that the replica ended has nothing to do with it.
            is_untried = isinstance(error, EngineGone)
            attempts, gone = attempts + (not is_untried), gone + is_untried
            if attempts >= ATTEMPTS or gone >= MOST_GONE:
                raise ReplicaLost(LOST_MESSAGE) from error
            log.warning("a replica ended before its first token; asking another one", error=type(error).__name__)
        on_retry()
        await asyncio.sleep(GONE_PAUSE_S if is_untried else 0)


def lost_event() -> str:
    """The server-sent event that ends an answer whose replica was lost."""
    error = {"message": LOST_MESSAGE, "type": "server_error", "param": None, "code": LOST_CODE}
    return f"data: {json.dumps({'error': error})}\n\n"
