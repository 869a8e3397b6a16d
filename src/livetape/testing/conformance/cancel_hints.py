"""What every CancelHints must do. Each case is a sentence of the docstrings in `livetape.engine.cancel_hints`.

Subclass it in a test module and give the fixture:

    class TestMyHints(CancelHintsSuite):
        @pytest.fixture
        async def hints(self):
            async with opened(MyHints()) as hints:
                yield hints
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from livetape.engine.cancel_hints import CancelHints


class CancelHintsSuite:
    """Cases for the CancelHints port. Nobody listens at the start of each."""

    patience_s = 10.0
    """How long a case waits for a hint that must be heard."""

    silence_s = 0.3
    """How long a case listens for one that must not be."""

    async def test_every_listener_hears_what_is_sent(self, hints: CancelHints) -> None:
        async with self._listening(hints) as first, self._listening(hints) as second:
            await hints.send("e1")
            await hints.send("e2")
            await self._heard(first, ["e1", "e2"])
            await self._heard(second, ["e1", "e2"])

    async def test_a_listener_that_fails_silences_nobody(self, hints: CancelHints) -> None:
        async with self._listening(hints, fails=True) as first, self._listening(hints) as second:
            await hints.send("e1")
            await hints.send("e2")
            await self._heard(first, ["e1", "e2"])
            await self._heard(second, ["e1", "e2"])

    async def test_whoever_stopped_listening_hears_nothing_more(self, hints: CancelHints) -> None:
        async with self._listening(hints) as gone:
            await hints.send("e1")
            await self._heard(gone, ["e1"])
        async with self._listening(hints) as here:
            await hints.send("e2")
            await self._heard(here, ["e2"])
        await asyncio.sleep(self.silence_s)
        assert set(gone) == {"e1"}

    async def test_any_name_is_carried(self, hints: CancelHints) -> None:
        names = ["e/1 #2", "Ausführung β 🙂", "x" * 300, '"{}']
        async with self._listening(hints) as heard:
            for name in names:
                await hints.send(name)
            await self._heard(heard, names)

    async def test_sending_to_nobody_is_nothing(self, hints: CancelHints) -> None:
        async with asyncio.timeout(self.patience_s):
            await hints.send("e")

    async def test_after_closing_nothing_is_heard(self, hints: CancelHints) -> None:
        async with self._listening(hints) as heard:
            await hints.close()
            await hints.close()
            await hints.send("e")
            await asyncio.sleep(self.silence_s)
            assert heard == []

    @asynccontextmanager
    async def _listening(self, hints: CancelHints, *, fails: bool = False) -> AsyncIterator[list[str]]:
        heard: list[str] = []

        def hear(graph_exec_id: str) -> None:
            heard.append(graph_exec_id)
            if fails:
                raise ValueError("a listener that fails")

        ready = asyncio.Event()
        task = asyncio.create_task(hints.listen(hear, ready))
        try:
            async with asyncio.timeout(self.patience_s):
                await ready.wait()
            yield heard
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def _heard(self, heard: Sequence[str], names: Sequence[str]) -> None:
        """All of them; some perhaps twice."""
        async with asyncio.timeout(self.patience_s):
            while not set(names) <= set(heard):  # noqa: ASYNC110 - a list tells nobody that it grew
                await asyncio.sleep(0.01)
        assert set(heard) == set(names)
