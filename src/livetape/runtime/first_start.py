"""What a new data folder begins with."""

from __future__ import annotations

from livetape.auth import DEFAULT_USER_ID
from livetape.engine.graph import Graph
from livetape.examples import example_files, example_graphs
from livetape.runtime.engine import Engine
from livetape.settings import Settings


async def install_examples(engine: Engine, settings: Settings) -> None:
    """At the first start: the graphs and files that come with the program, owned by the development user."""
    if await engine.graph_store.count():
        return
    for name, content in example_files().items():
        path = settings.files_dir / name
        if not path.exists():
            path.write_bytes(content)
    for graph in example_graphs():
        await engine.graphs.install(DEFAULT_USER_ID, Graph.model_validate(graph))
