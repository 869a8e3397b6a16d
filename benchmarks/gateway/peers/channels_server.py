"""Django Channels with channels_redis' pub/sub layer: a group for each channel.

channels_server.py PORT REDIS_URL
channels_server.py --message    the bytes that the layer publishes for the text on stdin
"""

import sys

from channels_redis.pubsub import RedisPubSubChannelLayer

if sys.argv[1] == "--message":
    layer = RedisPubSubChannelLayer(hosts=["redis://127.0.0.1:1"])
    sys.stdout.buffer.write(layer.serialize({"type": "event", "text": sys.stdin.read()}))
    sys.exit()

import django
import uvicorn
from django.conf import settings

settings.configure(
    CHANNEL_LAYERS={
        "default": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer", "CONFIG": {"hosts": [sys.argv[2]]}}
    }
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - not before setup
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class Consumer(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.channel_layer.group_add(self.scope["url_route"]["kwargs"]["channel"], self.channel_name)
        await self.accept()

    async def event(self, message: dict[str, str]) -> None:
        await self.send(text_data=message["text"])


uvicorn.run(
    ProtocolTypeRouter({"websocket": URLRouter([path("ws/<channel>", Consumer.as_asgi())])}),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    ws="websockets-sansio",
    loop="uvloop",
    http="httptools",
    lifespan="off",
    log_level="warning",
)
