"""The Lua scripts of the log, as one server knows them.

Each script begins with what the client found out about this run of the server. A server that was started again, or
another one that took its place, does not have that text: it answers NOSCRIPT, and what it is has to be asked anew.
Nothing else can tell a script that the server has changed under it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from livetape.adapters.redis.attempts import persist
from livetape.adapters.redis.commands import Commands, RedisReplyError, Word
from livetape.adapters.redis.failures import passes

NAMES: Final = ("append", "put", "create", "describe", "trim", "claim")

_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]+)")
_REPLICA_ID: Final = re.compile(rb"master_replid2:([0-9a-f]+)")
_CLUSTER: Final = re.compile(rb"cluster_enabled:1|redis_mode:cluster")
_SAFE: Final = {b"appendonly": b"yes", b"appendfsync": b"always", b"no-appendfsync-on-rewrite": b"no"}

Digests = Mapping[str, str]


@cache
def text_of(name: str) -> str:
    """The script as it stands in the package."""
    return (files("livetape.adapters.redis") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def header(run_id: str, *, safe: bool, promoted: bool) -> str:
    """What stands in front of a script. The same for the same run of a server, whoever loads it."""
    return f"local RUN = '{int(safe)}{run_id}'\nlocal PROMOTED = {'true' if promoted else 'false'}\n"


class Scripts:
    """Runs scripts by their digest. Safe for concurrent use by tasks of one event loop."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._all: Digests | None = None  # of the one server
        self._by_slot: dict[int, Digests] | None = None  # of the nodes of a cluster
        self._lock = asyncio.Lock()

    def digest(self, name: str, tape: str) -> str | None:
        """For EVALSHA; None before `load`."""
        if self._all is not None:
            return self._all[name]
        if self._by_slot is None:
            return None
        digests = self._by_slot.get(_slot(tape))
        return None if digests is None else digests[name]

    async def load(self, name: str, tape: str, refused: str | None) -> None:
        """Give the scripts to the server that has this tape, unless somebody did since this digest was refused.

        Raises:
            RedisLinkError, RedisReplyError: from the server.
        """
        async with self._lock:
            if refused != self.digest(name, tape):
                return
            while True:
                info, head = await self._server(tape)
                digests = await self._give(head, tape)
                if (await self._server(tape))[1] == head:
                    break
                # Another run of the server has the text of the one before: nobody may find it there.
                await self._commands.send(("SCRIPT", "FLUSH"), tape)
            if _CLUSTER.search(info):
                if self._by_slot is None:
                    self._by_slot = {}
                self._by_slot[_slot(tape)] = digests
            else:
                self._all = digests

    async def _give(self, head: str, tape: str) -> Digests:
        digests = {}
        for name in NAMES:
            text = head + text_of(name)
            digests[name] = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - Redis' own name for it
            await self._commands.send(("SCRIPT", "LOAD", text), tape)
        return digests

    async def _server(self, tape: str) -> tuple[bytes, str]:
        info: bytes = b"".join(
            [await self._commands.send(("INFO", part), tape) for part in ("server", "replication", "cluster")]
        )
        run_id, replica_id = _RUN_ID.search(info), _REPLICA_ID.search(info)
        promoted = replica_id is not None and replica_id[1].strip(b"0") != b""
        try:
            safe = all([await self._setting(name, tape) == value for name, value in _SAFE.items()])
        except RedisReplyError as error:
            if passes(error):
                raise
            safe = False  # it does not let itself be asked, as servers in the cloud
        return info, header((run_id[1] if run_id else b"").decode(), safe=safe, promoted=promoted)

    async def _setting(self, name: bytes, tape: str) -> bytes | None:
        answer = await self._commands.send(("CONFIG", "GET", name), tape)
        if isinstance(answer, dict):
            value: bytes | None = answer.get(name)
        else:
            value = answer[1] if len(answer) == 2 else None
        return value

    async def run(self, name: str, tape: str, keys: Sequence[str], words: Sequence[Word], *, timeout_s: float) -> Any:
        """The script's answer, tried again while that may help. The script must bear being run twice.

        Raises:
            LogUnavailableError: it did not help within `timeout_s` seconds.
            LogError: the server refuses it for good.
        """

        async def attempt() -> Any:
            digest = self.digest(name, tape)
            if digest is None:
                await self.load(name, tape, None)
                digest = self.digest(name, tape)
            try:
                return await self._commands.send(("EVALSHA", str(digest), len(keys), *keys, *words), tape)
            except RedisReplyError as error:
                if error.code == "NOSCRIPT":
                    await self.load(name, tape, digest)
                raise

        return await persist(attempt, timeout_s=timeout_s)


def _slot(tape: str) -> int:
    """The cluster slot of its keys (a tape's name has no braces)."""
    return crc_hqx(tape.encode(), 0) & 0x3FFF
