"""Whether a subscription may go on, and from where its client can continue."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from livetape.auth import Principal
from livetape.errors import LogUnavailableError
from livetape.events.channel import job_channel, job_tape
from livetape.events.log import Position, Tape
from livetape.events.recovery import Gap
from livetape.gateway.subjects import Kind, Subject
from livetape.gateway.subscription import Subscription
from livetape.gateway.subscriptions import ALLOW_TRIES, Subscriptions
from livetape.testing.fakes import FakeLog
from unit.gateway.rig import Rig, rigged

JOB, SUBJECT = job_tape("J"), Subject(Kind.JOB, "J")


def subscriptions(rig: Rig) -> Subscriptions:
    return rig.gateway._streams.subscriptions


async def watched(rig: Rig, user: str = "U", **who: Any) -> Subscription:
    client = rig.connect(user, **who)
    assert (await client.ask({"method": "subscribe_job", "data": {"job_id": "J"}}))["success"] is True
    (subscription,) = [one for one in list(rig.gateway._connections)[-1].subscriptions.values() if one is not None]
    return subscription


async def test_who_may_watch_on(rig: Rig) -> None:
    await rig.publisher.job("task_started")
    subscription = await watched(rig)
    for user, allowed in (("U", True), ("V", False)):
        assert await subscriptions(rig).allows(SUBJECT, Principal(user), subscription) is allowed
    rig.log.lose(JOB)
    assert await subscriptions(rig).allows(SUBJECT, Principal("U"), subscription), "there is nothing to see"


async def test_who_is_no_admin_any_more_may_not_watch_what_nobody_owns(rig: Rig) -> None:
    await rig.log.create(JOB, owner=None, channel=job_channel("J"))
    subscription = await watched(rig, role="admin")
    assert await subscriptions(rig).allows(SUBJECT, Principal("U", "admin"), subscription)
    assert not await subscriptions(rig).allows(SUBJECT, Principal("U"), subscription)


async def test_who_waits_for_a_tape_may_not_do_so_with_rights_it_had(rig: Rig) -> None:
    subscription = await watched(rig, role="admin")
    admin = subscription.topic.key.reader
    assert admin is not None
    assert await subscriptions(rig).allows(SUBJECT, admin, subscription)
    assert not await subscriptions(rig).allows(SUBJECT, Principal("U"), subscription)


class AwayLog(FakeLog):
    failures = 0

    async def describe(self, tape: str) -> Tape | None:
        if self.failures:
            self.failures -= 1
            raise LogUnavailableError
        return await super().describe(tape)


async def test_a_log_that_is_away_for_a_moment_ends_nothing() -> None:
    log = AwayLog()
    async with rigged(log=log) as rig:
        log.failures = 2
        assert await subscriptions(rig).allows(SUBJECT, Principal("U"))
        log.failures = ALLOW_TRIES + 1
        asking = asyncio.create_task(subscriptions(rig).allows(SUBJECT, Principal("U")))
        while not asking.done():
            rig.clock.advance(1)
            await asyncio.sleep(0)
        with pytest.raises(LogUnavailableError):
            await asking


async def test_from_where_a_client_can_continue(rig: Rig) -> None:
    position = await rig.publisher.job("task_started")
    subscription = await watched(rig)
    assert subscription.resume_position == position
    outbox = subscription._client.outbox
    outbox.shut = True  # the client does not read
    await rig.publisher.job("task_progress")
    for _ in range(5):
        await asyncio.sleep(0)
    assert subscription.topic.position.offset == 2
    assert subscription.resume_position == position, "the second has not left"
    outbox.open()
    assert subscription.resume_position == Position(position.epoch, 2)


async def test_what_the_log_does_not_have_cannot_be_continued(rig: Rig) -> None:
    position = await rig.publisher.job("task_started")
    subscription = await watched(rig)
    subscription.topic.run_ahead(position.offset)
    subscription.topic.lose(Gap(position.offset + 1, 9, position.epoch))
    assert subscription.resume_position == position
