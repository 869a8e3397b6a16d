"""Half of the crowd that comes back at once, as a process of its own; what it saw is told in one line of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

from chaos.site import many_files
from chaos.watchers import Subject, Watcher

END_S = 90.0


class Newcomer(Watcher):
    """Begins after a position, and is done at another."""

    def __init__(self, tape: dict[str, Any], number: int, port: int) -> None:
        super().__init__(f"c{number}", Subject("job", tape["job"]), [port], seed=number, open_s=END_S)
        self.chain.epoch, self.chain.offset = tape["epoch"], tape["after"]
        self.took = 0.0
        self._end = tape["end"]
        self._arrived = asyncio.Event()

    def take(self, text: bytes) -> None:
        super().take(text)
        if self.is_live and self.chain.offset == self._end:
            self._arrived.set()

    async def arrive(self) -> None:
        begun = time.monotonic()
        self._task = asyncio.create_task(self.run())
        await self._arrived.wait()
        self.took = time.monotonic() - begun

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def main(told: dict[str, Any]) -> dict[str, Any]:
    tapes = told["tapes"]
    crowd = [Newcomer(tapes[n % len(tapes)], n, told["port"]) for n in range(told["sockets"])]
    arriving = [asyncio.create_task(one.arrive()) for one in crowd]
    done, late = await asyncio.wait(arriving, timeout=END_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)
    await asyncio.gather(*(one.leave() for one in crowd))
    digests = defaultdict(set)
    problems = []
    for one in crowd:
        problems += [*one.chain.complaints, *one.chain.losses]
        digests[one.subject.tape] |= {stretch.digest.hexdigest() for stretch in one.chain.stretches}
    return {
        "complete": len(done),
        "connections": sum(one.connections for one in crowd),
        "asked_to_retry": sum(len(one.errors) for one in crowd),
        "median_s": round(sorted(one.took for one in crowd)[len(crowd) // 2], 2),
        "slowest_s": round(max(one.took for one in crowd), 2),
        "problems": problems[:20],
        "digests": {tape: sorted(found) for tape, found in digests.items()},
    }


if __name__ == "__main__":
    with many_files():
        print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
