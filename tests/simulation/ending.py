"""What the tables say when a history is over, for the judge: rows beside their events, forks beside what they take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from simulation.database import Shelf
from simulation.invariants import TERMINAL, Judge
from simulation.workload import ACTING, Book


def judge_rows(judge: Judge, shelf: Shelf, at: float) -> None:
    """Have every execution judged, but for probes."""
    for known in judge.executions.values():
        if known.key.startswith("probe"):
            continue
        found = shelf.rows("SELECT id, status, status_reason FROM execution WHERE id = ?", known.id)[0]
        outputs = _outputs(shelf, known.id)
        rows = shelf.rows("SELECT seq, id, status, block_id FROM node_execution WHERE execution_id = ?", known.id)
        nodes = [
            {
                "id": node_id,
                "status": status,
                "outputs": outputs.get(seq, []),
                "acts": block_id in ACTING and not known.nodes[seq].taken_over,
            }
            for seq, node_id, status, block_id in rows
        ]
        done = (row for row in rows if row[2] == "COMPLETED" and row[3] == Book.id)
        judge.bounds.booked(known.id, (node_id for seq, node_id, *_ in done if not known.nodes[seq].taken_over))
        events = shelf.rows(
            "SELECT number, event_type, payload FROM event WHERE tape_id = ? ORDER BY number", known.tape
        )
        judge.replayed(
            at,
            dict(zip(("id", "status", "status_reason"), found, strict=True)),
            nodes,
            [(number, kind, body) for number, kind, body in events],
        )
        if known.forked_from is not None:
            taken = (said for seq, said in _done(shelf, known.id) if known.nodes[seq].taken_over)
            judge.bounds.forked(known.id, taken, (said for _, said in _done(shelf, known.forked_from)))


def _outputs(shelf: Shelf, execution_id: str) -> dict[int, list[tuple[str, Any]]]:
    outputs: dict[int, list[tuple[str, Any]]] = {}
    for seq, name, value in shelf.rows(
        "SELECT seq, name, value FROM node_output WHERE execution_id = ? ORDER BY seq, position", execution_id
    ):
        outputs.setdefault(seq, []).append((name, from_json(value)))
    return outputs


def _done(shelf: Shelf, execution_id: str) -> Iterator[tuple[int, str]]:
    """The node executions that are over: number, and what was done with what."""
    outputs = _outputs(shelf, execution_id)
    for seq, node_id, status, inputs in shelf.rows(
        "SELECT seq, node_id, status, inputs FROM node_execution WHERE execution_id = ?", execution_id
    ):
        if status in TERMINAL:
            yield seq, f"{node_id} {status} {sorted(from_json(inputs).items())} {outputs.get(seq)}"
