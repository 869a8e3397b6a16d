"""Runs the cases of a conformance suite without a test framework.

A suite is a class whose `test_…` methods take one argument, a fresh adapter. pytest collects it as it is (give the
fixture in a subclass); `run_suite` calls the same methods one after the other, for instance to prove that a broken
adapter fails.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

OpenAdapter: TypeAlias = Callable[[], AbstractAsyncContextManager[Any]]
"""Makes a fresh adapter for one case and closes it afterwards."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that an adapter did not pass."""

    case: str
    error: BaseException

    def __str__(self) -> str:
        return f"{self.case}: {type(self.error).__name__}: {self.error}"


def cases(suite: type) -> list[str]:
    """The names of the suite's cases, in the order of the alphabet."""
    return [name for name, _ in inspect.getmembers(suite, inspect.iscoroutinefunction) if name.startswith("test_")]


async def run_suite(
    suite: type,
    open_adapter: OpenAdapter,
    *,
    only: Sequence[str] | None = None,
    timeout_s: float = 5.0,
    **attributes: Any,
) -> list[Failure]:
    """Run every case (or `only` these) against an adapter of its own; returns those that failed.

    A case that takes longer than `timeout_s` has failed. `attributes` are set on the suite's instance, for instance a
    shorter `patience_s`.
    """
    failures: list[Failure] = []
    for name in cases(suite) if only is None else only:
        instance = suite()
        for attribute, value in attributes.items():
            setattr(instance, attribute, value)
        try:
            async with asyncio.timeout(timeout_s), open_adapter() as adapter:
                await getattr(instance, name)(adapter)
        except Exception as error:
            failures.append(Failure(name, error))
    return failures
