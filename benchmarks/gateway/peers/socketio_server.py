"""python-socketio with its Redis manager: a room for each channel. `socketio_server.py PORT REDIS_URL`"""

import sys

import socketio
import uvicorn

manager = socketio.AsyncRedisManager(sys.argv[2])
server = socketio.AsyncServer(async_mode="asgi", client_manager=manager, ping_interval=300)


@server.event
async def subscribe(sid: str, channel: str) -> str:
    await server.enter_room(sid, channel)
    return "ok"


uvicorn.run(
    socketio.ASGIApp(server),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    ws="websockets-sansio",
    loop="uvloop",
    http="httptools",
    log_level="warning",
)
