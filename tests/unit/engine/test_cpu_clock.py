from __future__ import annotations

import subprocess
import sys

from conserve.engine.cpu_clock import REFRESH_S, ChildCpuClock


def test_children_s_time_counts_and_stays_when_they_end() -> None:
    now_s = 0.0
    clock = ChildCpuClock(lambda: now_s)
    before_s = clock.read()
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        now_s += REFRESH_S
        used_s = clock.read() - before_s
        assert used_s >= 0.25  # the system counts in hundredths of a second
    finally:
        child.communicate(b"\n", timeout=60)
    now_s += REFRESH_S
    assert clock.read() - before_s >= used_s
