"""Which graph is meant: an id, a name, or a file that is imported first."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from livetape.cli.client import Client
from livetape.cli.errors import CommandError

MIN_ID_CHARS: Final = 6


async def resolve_graph(client: Client, given: str) -> dict[str, Any]:
    """The graph with this id or unique name, or from this file."""
    if is_file(given):
        graph, _ = await import_graph(client, Path(given))
        return graph
    return await find_graph(client, given)


def is_file(given: str) -> bool:
    """Whether a path was given, not an id or a name."""
    return given.endswith(".json") or (os.sep in given and Path(given).is_file())


def slug(name: object) -> str:
    """`Alice in Wonderland` as one types it: `alice-in-wonderland`."""
    return "-".join(re.findall(r"\w+", str(name).lower()))


RULES: Final[tuple[Callable[[Mapping[str, Any], str], bool], ...]] = (
    lambda graph, given: graph["id"] == given,
    lambda graph, given: graph["name"] == given,
    lambda graph, given: slug(graph["name"]) == slug(given),
    lambda graph, given: bool(slug(given)) and slug(graph["name"]).startswith(slug(given)),
    lambda graph, given: len(given) >= MIN_ID_CHARS and str(graph["id"]).startswith(given),
)
"""How a graph may be named, the most exact way first."""


async def find_graph(client: Client, given: str) -> dict[str, Any]:
    """The graph with this id or name, or the only one whose name or id begins so.

    Raises:
        CommandError: there is none, or more than one.
    """
    graphs = await client.get("/api/graphs")
    found = next((matching for rule in RULES if (matching := [graph for graph in graphs if rule(graph, given)])), [])
    if len(found) == 1:
        return dict(found[0])
    if found:
        lines = "\n".join(f"{graph['id']}  {graph['name']}" for graph in found)
        raise CommandError("ambiguous", f"{given} fits {len(found)} graphs", because=lines, fix="use the id")
    import difflib

    names = [str(graph["name"]) for graph in graphs]
    close = difflib.get_close_matches(given, names, n=1)
    raise CommandError(
        "not_found",
        f"there is no graph {given}",
        because=f"there are: {', '.join(sorted(names))}" if names else "no graph is stored",
        fix=f"did you mean {close[0]!r}?" if close else "see livetape graphs list, or give the path of a JSON file",
    )


async def import_graph(client: Client, file: Path) -> tuple[dict[str, Any], bool]:
    """Store the graph of a file; whether it is new. The same graph under the same name is not stored twice."""
    graph = read_graph(file)
    for known in await client.get("/api/graphs"):
        if known["name"] == graph.get("name"):
            stored = await client.graph(str(known["id"]))
            if shape(stored) == shape(graph):
                return stored, False
    return await client.post("/api/graphs", {"graph": graph}), True


def read_graph(file: Path) -> dict[str, Any]:
    """The graph in a file, as it is sent: `{...}` or `{"graph": {...}}`."""
    try:
        graph = json.loads(file.read_bytes())
    except OSError as exc:
        raise CommandError("bad_input", f"cannot read {file}", because=exc.strerror or str(exc)) from exc
    except ValueError as exc:
        raise CommandError("bad_input", f"{file} is not JSON", because=str(exc)) from exc
    if isinstance(graph, dict) and isinstance(graph.get("graph"), dict):
        graph = graph["graph"]
    if not isinstance(graph, dict) or not isinstance(graph.get("nodes"), list):
        raise CommandError(
            "bad_input", f"{file} holds no graph", because="a graph is an object with name, nodes, links"
        )
    return graph


def shape(graph: Mapping[str, Any]) -> object:
    """What a graph does, without the ids that the server gives anew."""
    nodes = [node for node in graph.get("nodes") or () if isinstance(node, dict)]
    index = {node.get("id"): place for place, node in enumerate(nodes)}
    links = [link for link in graph.get("links") or () if isinstance(link, dict)]
    return (
        [(node.get("block_id"), node.get("input_default") or {}, node.get("metadata") or {}) for node in nodes],
        sorted(
            (
                index.get(link.get("source_id"), -1),
                str(link.get("source_name")),
                index.get(link.get("sink_id"), -1),
                str(link.get("sink_name")),
                bool(link.get("is_static")),
            )
            for link in links
        ),
    )
