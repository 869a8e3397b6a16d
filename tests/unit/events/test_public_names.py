"""What the event library promises by name: nothing goes, nothing comes unnoticed, and all of it is explained."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

import livetape

GOLDEN = {
    "livetape": """
        AsyncRedisEventBus AsyncRedisExecutionEventBus AsyncRedisNotificationEventBus Backend BaseRedisEventBus
        Bus BusError BusMessage BusUnavailableError ChannelError ClosedError Codec CodecError
        CommunicationErrorEvent ConfigError ConsumerGroups DecryptionError DeliveryPolicy Entry Envelope Event
        EventBus EventListener EventLog ExecutionEvent ExecutionEventType ExecutionStatus GraphExecutionEvent
        JobEvent JobReader Jobs JsonCodec KeyRing LivetapeError LogError LogUnavailableError NewEvent
        NodeExecutionEvent NodeOutputEvent NotFoundError NotificationEvent NotificationPayload Position
        PositionLostError Published Publisher Recorded Recorder RedisEventBus RedisExecutionEventBus
        RedisNotificationEventBus RedisStreamPublisher Subscription Tape TapeHoleError TokenStream encrypted
        open_backend open_client
    """,
    "livetape.events": """
        Alert AlertStats AlertWatcher Archived ArchivedLog Archiver AsyncRedisEventBus
        AsyncRedisExecutionEventBus AsyncRedisNotificationEventBus Backend BaseRedisEventBus Batch Bus BusError
        BusMessage BusUnavailableError ChannelError CircuitState ClosedError Codec CodecError
        CommunicationErrorEvent ConfigError ConsumerGroups CopilotCompletionPayload DecryptionError Delivered
        DeliveryPolicy Dropped Encoded EncryptedCodec Entry Envelope Event EventBus EventListener EventLog
        ExecutionEvent ExecutionEventType ExecutionStats ExecutionStatus Failed FollowOptions Found Gap
        GraphExecution GraphExecutionEvent GraphExecutionMeta JobEvent JobGroup JobInfo JobPage JobReader
        JobRecord JobSeen JobWriter Jobs JsonCodec KeyRing ListenerState Live LivetapeError LogError LogRecorder
        LogUnavailableError NewEvent NodeExecutionEvent NodeExecutionResult NodeOutputEvent NotFoundError
        NotificationEvent NotificationPayload OnboardingNotificationPayload Pending Portal Position
        PositionLostError ProcessLinks Published Publisher Recorded Recorder RedisEventBus
        RedisExecutionEventBus RedisNotificationEventBus RedisStreamPublisher Retention RetentionPolicy
        RetentionReport Rule Silent Stats Subscription SyncIterator Taken Tape TapeHoleError TapeRetention
        TextAssembler TextChange TextPart TokenRecord TokenStream TokenText TooFrequent follow_text onto_job
        open_backend open_client read_text
    """,
}
MODULES = sorted(GOLDEN)


def named(module: ModuleType) -> Iterator[tuple[str, object]]:
    for name in getattr(module, "__all__", []):
        yield name, getattr(module, name)


def is_ours(value: object) -> bool:
    return getattr(value, "__module__", "").startswith("livetape")


@pytest.mark.parametrize("name", MODULES)
def test_the_names_are_these(name: str) -> None:
    exported = getattr(import_module(name), "__all__", [])
    assert list(exported) == sorted(set(exported)), "sorted, each once"
    assert set(exported) == set(GOLDEN[name].split())


@pytest.mark.parametrize("name", MODULES)
def test_every_name_is_there_and_in_dir(name: str) -> None:
    module = import_module(name)
    names = [exported for exported, _ in named(module)]
    assert set(names) <= set(dir(module))
    assert not hasattr(module, "no_such_name")


@pytest.mark.parametrize("name", MODULES)
def test_one_name_is_one_thing(name: str) -> None:
    """What both modules export is the same object in both."""
    module = import_module(name)
    for exported, value in named(module):
        assert getattr(livetape, exported, value) is value


@pytest.mark.parametrize("name", MODULES)
def test_everything_is_explained(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    silent = [where for exported, value in named(module) for where in unexplained(exported, value)]
    assert silent == []


def unexplained(name: str, value: object) -> Iterator[str]:
    """The classes, functions and public methods of ours that have no docstring, their own or an inherited one."""
    if not is_ours(value) or not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    if not value.__doc__ or (inspect.isclass(value) and value.__doc__.startswith(f"{value.__name__}(")):
        yield name  # a dataclass without one shows its signature
    if inspect.isclass(value):
        for member, found in inspect.getmembers_static(value):
            function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
            if isinstance(function, property):
                function = function.fget
            if member.startswith("_") or not inspect.isfunction(function) or not is_ours(function):
                continue
            if not inspect.getdoc(getattr(value, member)):
                yield f"{name}.{member}"


@pytest.mark.parametrize("name", MODULES)
def test_errors_are_named_where_they_are_raised(name: str) -> None:
    """A `raise` in a public function or method is in its docstring, or in that of its class."""
    silent = [where for exported, value in named(import_module(name)) for where in unnamed_errors(exported, value)]
    assert silent == []


def unnamed_errors(name: str, value: object) -> Iterator[str]:
    if not is_ours(value):
        return
    if inspect.isfunction(value):
        yield from (f"{name}: {error}" for error in raised_by(value) if error not in (value.__doc__ or ""))
    if inspect.isclass(value):
        for member, found in inspect.getmembers_static(value):
            function = found.__func__ if isinstance(found, staticmethod | classmethod) else found
            if isinstance(function, property):
                function = function.fget
            if not inspect.isfunction(function) or not is_ours(function):
                continue
            if member == "__init__" or not member.startswith("_"):
                explained = f"{value.__doc__} {inspect.getdoc(getattr(value, member))}"
                yield from (f"{name}.{member}: {error}" for error in raised_by(function) if error not in explained)


def raised_by(function: Any) -> set[str]:
    """The classes of the errors that it makes and raises itself."""
    if function.__code__.co_filename.startswith("<"):
        return set()  # made by `dataclass`
    tree = ast.parse(dedent(inspect.getsource(function)))
    made = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in made if isinstance(call.func, ast.Name) and call.func.id[0].isupper()}
