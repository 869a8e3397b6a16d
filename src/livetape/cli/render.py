"""Events as lines of text, and names for nodes. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from livetape.cli.tape import Push

PREVIEW_CHARS = 100
TERMINAL = frozenset({"COMPLETED", "FAILED", "TERMINATED"})


class Names:
    """A short name for every node of a graph: its own, else what it is; numbered where two are alike."""

    def __init__(self, graph: Mapping[str, Any], blocks: Iterable[Mapping[str, Any]]) -> None:
        block_names = {str(block["id"]): str(block["name"]) for block in blocks}
        self._names: dict[str, str] = {}
        used: dict[str, int] = {}
        for node in graph.get("nodes", ()):
            name = _name(node, block_names.get(str(node["block_id"]), str(node["block_id"])[:8]))
            used[name] = used.get(name, 0) + 1
            self._names[str(node["id"])] = name if used[name] == 1 else f"{name}#{used[name]}"

    def of(self, node_id: object) -> str:
        """The name, else the beginning of the id."""
        return self._names.get(str(node_id), str(node_id)[:8])

    def all(self) -> Mapping[str, str]:
        """Node id -> name, in the order of the graph."""
        return self._names


def _name(node: Mapping[str, Any], block: str) -> str:
    metadata = node.get("metadata") or {}
    for key in ("customized_name", "title", "name"):
        if metadata.get(key):
            return preview(str(metadata[key]), 40)
    pin = (node.get("input_default") or {}).get("name")
    if isinstance(pin, str) and pin and block.startswith("Agent"):
        for kind in ("Input", "Output"):
            if block.endswith(f"{kind}Block"):
                return f"{kind.lower()} {preview(pin, 40)}"
    return block.removesuffix("Block") or block


def preview(value: Any, width: int = PREVIEW_CHARS) -> str:
    """A value on one line, with nothing in it that a terminal would obey."""
    if isinstance(value, str):
        text = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(value[: width * 8].split()))
    else:
        text = compact(value)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def compact(value: Any) -> str:
    """JSON without spaces, as on the wire."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def line(push: Push, names: Names | None = None) -> str:
    """One event as a line: its number, what, where, details."""
    number = "-" if push.offset is None else str(push.offset)
    what, where, details = _parts(push, names)
    return f"{number:>5} {what:<10} {where}{'  ' + details if details else ''}".rstrip()


def record(push: Push) -> str:
    """One event as a JSON line."""
    head = {"offset": push.offset, "epoch": push.epoch, "final": push.final, "method": push.method}
    return compact({**head, "data": push.data})


def _parts(push: Push, names: Names | None) -> tuple[str, str, str]:
    data = push.data if isinstance(push.data, dict) else {}
    name = (names.of if names else lambda node_id: str(node_id)[:8])(data.get("node_id"))
    match push.method:
        case "graph_execution_event":
            return str(data.get("status")), f"execution {str(data.get('id'))[:13]}", reason(data)
        case "node_execution_event":
            return str(data.get("status")), name, reason(data)
        case "node_output_event":
            return "OUTPUT", name, f"{data.get('name')} = {preview(data.get('value'))}"
        case "job_event":
            kind = str(data.get("event_type", "unknown"))
            return kind, preview(data.get("data", data)), ""
        case _:
            return push.method, preview(push.data), ""


def reason(data: Mapping[str, Any]) -> str:
    """Why the status is what it is, if anything says so."""
    said = data.get("status_reason")
    stats = data.get("stats") or {}
    error = stats.get("error") if isinstance(stats, dict) else None
    if data.get("status") == "FAILED" and not error:
        values = (data.get("output_data") or {}).get("error") or [None]
        error = values[-1]
    return ": ".join(preview(part) for part in (said, error) if part)


def output_lines(outputs: Mapping[str, Any]) -> list[str]:
    """The outputs of an execution, one value after the other."""
    return [
        f"{name}: {value if isinstance(value, str) else compact(value)}"
        for name, values in outputs.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell."""
    cells = [header, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def moment(text: object) -> datetime | None:
    """A time of the wire; None when it is none."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found
