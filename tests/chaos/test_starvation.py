"""Who gets no processor is seen; who gets one is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from chaos.starvation import Starvation

SPIN = "while True: pass"


async def look_for(seconds: float, starvation: Starvation) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await starvation.run()


@pytest.mark.slow
async def test_processes_that_share_one_processor_are_starved() -> None:
    one = sorted(os.sched_getaffinity(0))[0]
    spinners = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}])\n{SPIN}"])
        for _ in range(4)
    ]
    begun = time.time()
    try:
        starvation = Starvation(lambda: [spinner.pid for spinner in spinners])
        await look_for(2.5, starvation)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert {span.pid for span in starvation.spans} == {spinner.pid for spinner in spinners}
    assert all(begun <= span.begun < span.ended <= time.time() for span in starvation.spans)


async def test_who_wants_no_processor_is_not_starved_and_who_is_gone_is_nobody() -> None:
    stopped = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        os.kill(stopped.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WNOWAIT)
        starvation = Starvation(lambda: [stopped.pid, 2**22 - 1])
        await look_for(0.8, starvation)
    finally:
        stopped.kill()
        stopped.wait()
    assert starvation.spans == []
