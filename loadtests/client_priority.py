"""A load generator that shares its cores with what it measures goes before it: it stands for clients elsewhere.

Otherwise it waits for the processor itself, on two cores with two engines for up to three seconds at a time, and takes
that for the latency of the server.
"""

from __future__ import annotations

import os
from collections.abc import Callable


def go_before_others(announce: Callable[[str], None] = lambda line: None) -> bool:
    """Runs this thread before all ordinary ones; where it may not, that is announced, and the answer is False.

    What it starts is ordinary again. On Linux: `SCHED_RR`, sched(7).
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (AttributeError, PermissionError):
        announce("Without the right to go before others, the client waits for the processor, too.")
        return False
    return True
