"""Blocks that tell the time."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.errors import BlockInputError

MAX_OFFSET_DAYS = 100 * 366

# What `strftime` knows on every platform, and glibc's `-` (no zeros in front). No widths: they have no bound.
_DIRECTIVES = re.compile(r"(?:[^%]|%-?[aAbBcdHIjmMpSUwWxXyYzZfGuV]|%%)*")

Zone = Annotated[str, Field(max_length=100)]
Pattern = Annotated[str, Field(max_length=200)]


class _Strftime(BlockSchema):
    discriminator: Literal["strftime"] = "strftime"
    timezone: Zone = "UTC"


class _Iso8601(BlockSchema):
    discriminator: Literal["iso8601"] = "iso8601"
    timezone: Zone = "UTC"


class TimeStrftimeFormat(_Strftime):
    format: Pattern = "%H:%M:%S"


class TimeISO8601Format(_Iso8601):
    include_microseconds: bool = False


class DateStrftimeFormat(_Strftime):
    format: Pattern = "%Y-%m-%d"


class DateISO8601Format(_Iso8601):
    pass


class StrftimeFormat(_Strftime):
    format: Pattern = "%Y-%m-%d %H:%M:%S"


class ISO8601Format(_Iso8601):
    include_microseconds: bool = False


def _local(ctx: BlockContext, zone: str) -> datetime:
    try:
        return ctx.clock.now().astimezone(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BlockInputError(f"format_type: {zone[:100]!r} is not a time zone, use names as Europe/Paris") from None


def _formatted(moment: datetime, pattern: str) -> str:
    if not _DIRECTIVES.fullmatch(pattern):
        raise BlockInputError("format_type: format has an unknown % directive")
    return moment.strftime(pattern)


class GetCurrentTimeInput(BlockSchema):
    trigger: str
    format_type: Annotated[TimeStrftimeFormat | TimeISO8601Format, Field(discriminator="discriminator")] = Field(
        default_factory=TimeStrftimeFormat
    )


class GetCurrentTimeOutput(BlockSchema):
    time: str


class GetCurrentTimeBlock(Block[GetCurrentTimeInput]):
    id = "a892b8d9-3e4e-4e9c-9c1e-75f8efcf1bfa"
    description = "Tells the time of day."
    categories = (BlockCategory.TEXT,)
    read_only = True
    Input = GetCurrentTimeInput
    Output = GetCurrentTimeOutput
    vectors = (
        Vector({"trigger": "go"}, [("time", "22:04:05")]),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "strftime", "format": "%I:%M %p %%"}},
            [("time", "10:04 PM %")],
        ),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "iso8601", "timezone": "Asia/Kolkata"}},
            [("time", "03:34:05+05:30")],
        ),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "iso8601", "include_microseconds": True}},
            [("time", "22:04:05.678901+00:00")],
        ),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "strftime", "format": "%1000000000Y"}},
            raises=BlockInputError,
            matching="unknown % directive",
        ),
    )

    async def run(self, data: GetCurrentTimeInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        form = data.format_type
        moment = _local(ctx, form.timezone)
        if isinstance(form, TimeISO8601Format):
            precision = "microseconds" if form.include_microseconds else "seconds"
            yield "time", moment.isoformat(timespec=precision).partition("T")[2]
        else:
            yield "time", _formatted(moment, form.format)


class GetCurrentDateInput(BlockSchema):
    trigger: str
    offset: int | str = 0
    format_type: Annotated[DateStrftimeFormat | DateISO8601Format, Field(discriminator="discriminator")] = Field(
        default_factory=DateStrftimeFormat
    )


class GetCurrentDateOutput(BlockSchema):
    date: str


class GetCurrentDateBlock(Block[GetCurrentDateInput]):
    """`offset` counts days back from today; a negative one leads into the future."""

    id = "b29c1b50-5d0e-4d9f-8f9d-1b0e6fcbf0b1"
    description = "Tells the date of today, or of a number of days ago."
    categories = (BlockCategory.TEXT,)
    read_only = True
    Input = GetCurrentDateInput
    Output = GetCurrentDateOutput
    vectors = (
        Vector({"trigger": "go"}, [("date", "2025-01-02")]),
        Vector({"trigger": "go", "offset": "7"}, [("date", "2024-12-26")]),
        Vector(
            {
                "trigger": "go",
                "offset": -1,
                "format_type": {"discriminator": "strftime", "format": "%d/%m/%y", "timezone": "Asia/Tokyo"},
            },
            [("date", "04/01/25")],
        ),
        Vector({"trigger": "go", "format_type": {"discriminator": "iso8601"}}, [("date", "2025-01-02")]),
        Vector({"trigger": "go", "offset": "a week"}, raises=BlockInputError, matching="offset: "),
        Vector({"trigger": "go", "offset": 10**9}, raises=BlockInputError, matching="offset: "),
    )

    async def run(self, data: GetCurrentDateInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        try:
            days = int(data.offset)
        except ValueError:
            raise BlockInputError("offset: not a number of days") from None
        if abs(days) > MAX_OFFSET_DAYS:
            raise BlockInputError("offset: more than a hundred years")
        form = data.format_type
        moment = _local(ctx, form.timezone) - timedelta(days=days)
        if isinstance(form, DateISO8601Format):
            yield "date", moment.date().isoformat()
        else:
            yield "date", _formatted(moment, form.format)


class GetCurrentDateAndTimeInput(BlockSchema):
    trigger: str
    format_type: Annotated[StrftimeFormat | ISO8601Format, Field(discriminator="discriminator")] = Field(
        default_factory=StrftimeFormat
    )


class GetCurrentDateAndTimeOutput(BlockSchema):
    date_time: str


class GetCurrentDateAndTimeBlock(Block[GetCurrentDateAndTimeInput]):
    id = "716a67b3-6760-42e7-86dc-18645c6e00fc"
    description = "Tells the date and the time."
    categories = (BlockCategory.TEXT,)
    read_only = True
    Input = GetCurrentDateAndTimeInput
    Output = GetCurrentDateAndTimeOutput
    vectors = (
        Vector({"trigger": "go"}, [("date_time", "2025-01-02 22:04:05")]),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "iso8601", "timezone": "America/New_York"}},
            [("date_time", "2025-01-02T17:04:05-05:00")],
        ),
        Vector(
            {"trigger": "go", "format_type": '{"discriminator": "strftime", "format": "%A, %-d %B %Y"}'},
            [("date_time", "Thursday, 2 January 2025")],
        ),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "iso8601", "timezone": "../../etc/passwd"}},
            raises=BlockInputError,
            matching="not a time zone",
        ),
        Vector(
            {"trigger": "go", "format_type": {"discriminator": "julian"}},
            raises=BlockInputError,
            matching="format_type",
        ),
        Vector({}, raises=BlockInputError, matching="trigger: this field is required"),
    )

    async def run(self, data: GetCurrentDateAndTimeInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        form = data.format_type
        moment = _local(ctx, form.timezone)
        if isinstance(form, ISO8601Format):
            yield "date_time", moment.isoformat(timespec="microseconds" if form.include_microseconds else "seconds")
        else:
            yield "date_time", _formatted(moment, form.format)


BLOCKS = (GetCurrentTimeBlock, GetCurrentDateBlock, GetCurrentDateAndTimeBlock)
