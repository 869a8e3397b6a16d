"""Events without a server: a live bus in this process, and tapes in one SQLite file.

python events_embedded.py [FILE]     needs nothing but `pip install livetape`; the second run finds what the first wrote
"""

import asyncio
import sys
from typing import Literal

from pydantic import BaseModel

from livetape.events import EventBus, JobReader, RedisStreamPublisher, open_backend


class Progress(BaseModel):
    event_type: Literal["progress"] = "progress"
    step: int


async def main(file: str) -> None:
    backend = open_backend(f"sqlite:///{file}")
    try:
        # An event bus: whoever listens gets what is published from then on, from a position also what was before.
        bus = EventBus(Progress, name="demo", backend=backend, durable=True)
        async with bus, bus.listen("report") as listener:
            for step in (1, 2, 3):
                published = await bus.publish(Progress(step=step), "report")
                print(f"published: step {step} as number {published.position.offset}")
            async for event in listener:
                print(f"heard: step {event.step}")
                if event.step == 3:
                    break

        # The stream of a job: published under its id, read later or while it runs.
        publisher = RedisStreamPublisher(backend=backend, user_id="user-1")
        await publisher.publish_task_started("job-1", "outline")
        await publisher.publish_task_progress("job-1", "outline", 50)
        await publisher.publish_task_completed("job-1", "outline", {"title": "Events"})

        for record in await JobReader.of(backend).read("job-1"):
            print(f"on the tape: {record.offset} {record.event_type} {record.data.get('progress', '')}".rstrip())
    finally:
        await backend.close()


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "events.db"))
