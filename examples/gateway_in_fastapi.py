"""An application that exists already gets live events: a socket and event routes beside its own.

python gateway_in_fastapi.py [URL]     needs `pip install livetape[gateway]`; URL is redis://… or (default) a file
"""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import connect

from livetape.auth import issue_token
from livetape.gateway.mount import mount_gateway

KEY = "the key that signs the tokens of this application"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    print("application: started")
    yield
    print("application: stopped")


app = FastAPI(lifespan=lifespan)
# This line is all that it takes.
gateway = mount_gateway(app, sys.argv[1] if len(sys.argv) > 1 else "sqlite:///jobs.db", key=KEY)


@app.post("/reports/{report_id}")
async def start_report(report_id: str) -> dict[str, str]:
    await gateway.create(report_id, "alice")  # from now on alice can watch it
    app.state.work = asyncio.create_task(write_report(report_id))
    return {"job_id": report_id}


async def write_report(report_id: str) -> None:
    publisher = gateway.publisher
    await publisher.publish_task_started(report_id, "report")
    await publisher.publish_task_progress(report_id, "report", 50)
    await publisher.publish_task_completed(report_id, "report", {"pages": 12})


# ---- a client --------------------------------------------------------------------------------------------------------


async def watch(port: int, report_id: str) -> None:
    token = issue_token(KEY, user_id="alice", now=datetime.now(UTC), ttl=timedelta(hours=1))
    async with connect(f"ws://127.0.0.1:{port}/ws?token={token}", proxy=None) as ws:
        data = {"job_id": report_id, "since": "earliest"}
        await ws.send(json.dumps({"method": "subscribe_job", "data": data}))
        async for text in ws:
            message = json.loads(text)
            if message["method"] != "job_event":
                print(f"client: {message['method']} {message['channel']}")
                continue
            print(f"client: {message['offset']} {message['data']['event_type']}")
            if message.get("final"):
                return


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - it does not say
            await asyncio.sleep(0.01)
        await start_report("report-1")
        await watch(listener.getsockname()[1], "report-1")
        server.should_exit = True
        await serving


if __name__ == "__main__":
    asyncio.run(main())
