"""DataSamplingBlock."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from livetape.engine.block import Block, BlockCategory, BlockContext, BlockSchema, PinValue, Vector
from livetape.engine.blocks.limits import MAX_ITEMS, AnyEntries
from livetape.errors import BlockExecutionError, BlockInputError

Rows = Annotated[list[dict[Any, Any] | list[Any]], Field(max_length=MAX_ITEMS)]


class SamplingMethod(StrEnum):
    RANDOM = "random"
    SYSTEMATIC = "systematic"
    TOP = "top"
    BOTTOM = "bottom"
    STRATIFIED = "stratified"
    WEIGHTED = "weighted"
    RESERVOIR = "reservoir"
    CLUSTER = "cluster"


class DataSamplingInput(BlockSchema):
    data: AnyEntries | Rows
    sample_size: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 10
    sampling_method: SamplingMethod = SamplingMethod.RANDOM
    accumulate: bool = False
    random_seed: int | None = None
    stratify_key: str | None = None
    weight_key: str | None = None
    cluster_key: str | None = None


class DataSamplingOutput(BlockSchema):
    sampled_data: Rows
    sample_indices: list[int]


_ROWS = [{"id": number, "group": number % 3, "weight": number == 4} for number in range(6)]


class DataSamplingBlock(Block[DataSamplingInput]):
    """Without a seed the choice depends on the node execution alone: run again, it chooses the same.

    `weighted` may choose a row several times. `accumulate` would need data of earlier runs, which blocks do not keep.
    """

    id = "4a448883-71fa-49cf-91cf-70d793bd7d87"
    description = "Chooses some rows out of many, by one of several methods."
    categories = (BlockCategory.LOGIC,)
    read_only = True
    Input = DataSamplingInput
    Output = DataSamplingOutput
    vectors = (
        Vector(
            {"data": _ROWS, "sample_size": 2, "sampling_method": "top"},
            [("sampled_data", _ROWS[:2]), ("sample_indices", [0, 1])],
        ),
        Vector(
            {"data": _ROWS, "sample_size": 2, "sampling_method": "bottom"},
            [("sampled_data", _ROWS[4:]), ("sample_indices", [4, 5])],
        ),
        Vector(
            {"data": _ROWS, "sample_size": 2, "sampling_method": "weighted", "weight_key": "weight"},
            [("sampled_data", [_ROWS[4]] * 2), ("sample_indices", [4, 4])],
        ),
        Vector(
            {"data": _ROWS, "sample_size": 6, "sampling_method": "stratified", "stratify_key": "group"},
            [("sampled_data", [_ROWS[i] for i in (0, 3, 1, 4, 2, 5)]), ("sample_indices", [0, 3, 1, 4, 2, 5])],
        ),
        Vector({"data": {"a": 1}, "sample_size": 1}, [("sampled_data", [{"a": 1}]), ("sample_indices", [0])]),
        Vector(
            {"data": [[1], [2]], "sample_size": 2, "sampling_method": "systematic"},
            [("sampled_data", [[1], [2]]), ("sample_indices", [0, 1])],
        ),
        Vector({"data": _ROWS, "sample_size": 7}, raises=BlockExecutionError, matching="sample_size: 7 of 6 rows"),
        Vector(
            {"data": _ROWS, "sample_size": 1, "sampling_method": "cluster"},
            raises=BlockExecutionError,
            matching="cluster_key: this method needs it",
        ),
        Vector({"data": _ROWS, "accumulate": True}, raises=BlockExecutionError, matching="accumulate: "),
        Vector({"data": _ROWS, "sampling_method": "guess"}, raises=BlockInputError, matching="sampling_method: "),
        Vector({"data": _ROWS, "sample_size": 0}, raises=BlockInputError, matching="sample_size: "),
    )

    async def run(self, data: DataSamplingInput, ctx: BlockContext) -> AsyncIterator[PinValue]:
        if data.accumulate:
            raise BlockExecutionError("accumulate: not possible here, collect the rows in a list first")
        rows: Sequence[Any] = data.data if isinstance(data.data, list) else [data.data]
        if data.sample_size > len(rows):
            raise BlockExecutionError(f"sample_size: {data.sample_size} of {len(rows)} rows cannot be chosen")
        seed = ctx.idempotency_key if data.random_seed is None else data.random_seed
        places = _METHODS[data.sampling_method](rows, data, random.Random(seed))  # noqa: S311 (no secret is made)
        yield "sampled_data", [rows[place] for place in places]
        yield "sample_indices", places


def _random(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    return rng.sample(range(len(rows)), data.sample_size)


def _systematic(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    step = len(rows) // data.sample_size
    return list(range(rng.randrange(step), len(rows), step))[: data.sample_size]


def _top(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    return list(range(data.sample_size))


def _bottom(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    return list(range(len(rows) - data.sample_size, len(rows)))


def _reservoir(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    kept = list(range(data.sample_size))
    for place in range(data.sample_size, len(rows)):
        other = rng.randint(0, place)
        if other < data.sample_size:
            kept[other] = place
    return kept


def _weighted(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    weights = [_weight(place, value) for place, value in enumerate(_values(rows, data.weight_key, "weight_key"))]
    if not math.isfinite(sum(weights)) or sum(weights) <= 0:
        raise BlockExecutionError("weight_key: the weights must have a sum above 0")
    return rng.choices(range(len(rows)), weights, k=data.sample_size)


def _weight(place: int, value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not weight >= 0:
        raise BlockExecutionError(f"weight_key: row {place} has no weight of 0 or more")
    return weight


def _stratified(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    """Each group in proportion to its size, at least one of each while there are enough; largest remainders first."""
    groups = list(_groups(_values(rows, data.stratify_key, "stratify_key")).values())
    shares = [len(group) * data.sample_size / len(rows) for group in groups]
    sizes = [min(len(group), int(share)) for group, share in zip(groups, shares, strict=True)]
    by_need = sorted(range(len(groups)), key=lambda i: (sizes[i] > 0, sizes[i] - shares[i], i))
    while sum(sizes) < data.sample_size:
        for i in by_need:
            if sizes[i] < len(groups[i]) and sum(sizes) < data.sample_size:
                sizes[i] += 1
    return [place for group, size in zip(groups, sizes, strict=True) for place in sorted(rng.sample(group, size))]


def _cluster(rows: Sequence[Any], data: DataSamplingInput, rng: random.Random) -> list[int]:
    groups = list(_groups(_values(rows, data.cluster_key, "cluster_key")).values())
    rng.shuffle(groups)
    chosen: list[int] = []
    for group in groups:
        if len(chosen) >= data.sample_size:
            break
        chosen += group
    return chosen if len(chosen) == data.sample_size else rng.sample(chosen, data.sample_size)


def _values(rows: Sequence[Any], key: str | None, pin: str) -> list[Any]:
    if not key:
        raise BlockExecutionError(f"{pin}: this method needs it")
    values = [row.get(key) if isinstance(row, dict) else None for row in rows]
    if None in values:
        raise BlockExecutionError(f"{pin}: row {values.index(None)} has no {key!r}")
    return values


def _groups(values: Sequence[Any]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault(str(value), []).append(place)
    return groups


_METHODS: dict[SamplingMethod, Callable[[Sequence[Any], DataSamplingInput, random.Random], list[int]]] = {
    SamplingMethod.RANDOM: _random,
    SamplingMethod.SYSTEMATIC: _systematic,
    SamplingMethod.TOP: _top,
    SamplingMethod.BOTTOM: _bottom,
    SamplingMethod.STRATIFIED: _stratified,
    SamplingMethod.WEIGHTED: _weighted,
    SamplingMethod.RESERVOIR: _reservoir,
    SamplingMethod.CLUSTER: _cluster,
}


BLOCKS = (DataSamplingBlock,)
