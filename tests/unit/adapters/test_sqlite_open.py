"""The embedded backend: its URL, its life, and several processes on one file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from livetape.adapters.sqlite.writer import connect
from livetape.errors import ClosedError, ConfigError, LogUnavailableError
from livetape.events.codec import Envelope, durable_message
from livetape.events.log import NewEvent
from livetape.events.open import Backend, open_backend
from livetape.testing.conformance.groups import Sharing
from livetape.testing.conformance.recorder import Recording

EVENT = NewEvent("said", b'{"event_type":"said"}')


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Backend]:
    backend = open_backend(url)
    try:
        yield backend
    finally:
        await backend.close()
        await backend.close()


# ---- the URL -------------------------------------------------------------------------------------------------------


async def test_three_slashes_are_a_path_in_this_folder_and_four_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for url in ("sqlite:///a.db", "sqlite:///folder/b%20b.db", f"sqlite:///{tmp_path}/c.db?durability=FULL"):
        async with opened(url) as backend:
            await Recording.of(backend).record("one")
    assert [(tmp_path / name).exists() for name in ("a.db", "folder/b b.db", "c.db")] == [True] * 3


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://file.db",
        "sqlite:///",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///folder/",
        "sqlite:///a.db?durability=some",
        "sqlite:///a.db?mode=ro",
        "sqlite:///a.db#x",
        "sqlite:////no/such/folder/a.db",
    ],
)
def test_what_is_no_file_is_refused_with_a_way_out(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        open_backend(url)
    assert refused.value.fix


# ---- its life ------------------------------------------------------------------------------------------------------


async def test_nothing_is_opened_before_the_first_use(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as backend:
        assert list(tmp_path.iterdir()) == []
        assert await Recording.of(backend).log.read("t") == []
        assert (tmp_path / "a.db").exists()
    async with opened(f"sqlite:///{tmp_path}/b.db"):
        pass
    assert not (tmp_path / "b.db").exists()


async def test_a_file_that_cannot_be_opened_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "a.db").mkdir()
    async with opened(f"sqlite:///{tmp_path}/a.db") as backend:
        recording = Recording.of(backend)
        for _ in range(2):
            with pytest.raises(LogUnavailableError):
                await recording.record("one")
            with pytest.raises(LogUnavailableError):
                await recording.log.read("t")
        (tmp_path / "a.db").rmdir()
        assert (await recording.record("one")).position.offset == 1


async def test_what_was_called_before_closing_is_written_and_nothing_after(tmp_path: Path) -> None:
    backend = open_backend(f"sqlite:///{tmp_path}/a.db")
    recording, groups = Recording.of(backend), Sharing.of(backend).groups
    calls = [asyncio.ensure_future(recording.record(str(n))) for n in range(10)]
    await asyncio.sleep(0)
    await backend.close()
    assert [call.position.offset for call in await asyncio.gather(*calls)] == list(range(1, 11))
    for refused in (
        recording.record("late"),
        recording.log.append("t", EVENT),
        recording.log.read("t"),
        groups.create("t", "g"),
        recording.bus.publish("suite/a", b""),
    ):
        with pytest.raises(ClosedError):
            await refused


async def test_what_cannot_be_pushed_is_on_the_tape(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as backend:
        await backend.bus.close()
        recorded = await Recording.of(backend).record("one")
        assert (recorded.position.offset, recorded.receivers) == (1, None)


async def test_a_failing_batch_fails_all_its_calls_and_the_next_one_works(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as backend:
        recording = Recording.of(backend)
        await recording.record("one")
        with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
            db.execute("ALTER TABLE event RENAME TO elsewhere")
            failed = await asyncio.gather(*(recording.record(str(n)) for n in range(3)), return_exceptions=True)
            assert all(isinstance(error, LogUnavailableError) for error in failed)
            db.execute("ALTER TABLE elsewhere RENAME TO event")
        assert (await recording.record("two")).position.offset == 2


async def test_with_full_durability_every_commit_is_made_in_the_thread(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db?durability=full") as backend:
        recording = Recording.of(backend)
        recorded = await asyncio.gather(*(recording.record(str(n)) for n in range(20)))
        assert [one.position.offset for one in recorded] == list(range(1, 21))


# ---- several processes ---------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from livetape.events.log import NewEvent
from livetape.events.open import open_backend

async def main():
    backend = open_backend(sys.argv[1])
    name, count = sys.argv[2], int(sys.argv[3])
    event = NewEvent("said", b'{"event_type":"said"}')
    for number in range(count):
        await backend.recorder.record("t", "suite/a", event, idempotency_key=f"{name}-{number}")
    await backend.close()

asyncio.run(main())
"""


def start_writer(url: str, name: str, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, url, name, str(count)], env={**os.environ})


@pytest.mark.slow
async def test_processes_that_open_and_write_at_once_share_one_numbering(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    writers = [start_writer(url, str(n), 200) for n in range(4)]
    for writer in writers:
        assert await asyncio.to_thread(writer.wait, 60) == 0
    async with opened(url) as backend:
        assert backend.log is not None
        entries = [*await backend.log.read("t")]
    assert [entry.offset for entry in entries] == list(range(1, 801))


@pytest.mark.slow
async def test_who_waits_in_a_group_sees_what_another_process_appends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url) as backend:
        sharing = Sharing.of(backend)
        await sharing.groups.create("t", "g")
        waiting = asyncio.ensure_future(sharing.groups.take("t", "g", "c", wait_s=60))
        writer = start_writer(url, "other", 1)
        assert await asyncio.to_thread(writer.wait, 60) == 0
        async with asyncio.timeout(5):
            assert [one.entry.offset for one in await waiting] == [1]


async def test_a_process_that_writes_meanwhile_holds_up_no_loop(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/a.db") as backend:
        recording = Recording.of(backend)
        await recording.record("one")
        with closing(connect(tmp_path / "a.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            calls = [asyncio.ensure_future(recording.record(str(n))) for n in range(3)]
            await asyncio.sleep(0.05)
            assert not any(call.done() for call in calls), "and the loop went on"
            other.execute("COMMIT")
            assert [call.position.offset for call in await asyncio.gather(*calls)] == [2, 3, 4]


async def test_a_process_that_writes_for_too_long_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("livetape.adapters.sqlite.writer.LOCKED_S", 0.05)
    async with opened(f"sqlite:///{tmp_path}/a.db") as backend:
        recording = Recording.of(backend)
        await recording.record("one")
        with closing(connect(tmp_path / "a.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LogUnavailableError):
                await recording.record("two", key="k")
            other.execute("COMMIT")
        assert (await recording.record("two", key="k")).position.offset == 2


# ---- the wire form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("traceparent", [None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 'a"b'])
def test_a_message_in_one_step_is_the_envelope(final: bool, lossy: bool, traceparent: str | None) -> None:
    envelope = Envelope(b'{"a":1}', "", 7, "k3v9x0aq", final=final, lossy=lossy, traceparent=traceparent)
    assert (
        durable_message(b'{"a":1}', 7, "k3v9x0aq", final=final, lossy=lossy, traceparent=traceparent)
        == envelope.encode()
    )
