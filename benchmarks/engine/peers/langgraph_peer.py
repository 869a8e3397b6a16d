"""LangGraph with its SQLite checkpointer: langgraph_peer.py chain '{"nodes": …, "times": …}'. Prints JSON."""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    value: int


async def node(state: State) -> State:
    return {"value": state["value"]}


async def measure_chain(nodes: int, times: int) -> list[float]:
    builder = StateGraph(State)
    names = [f"n{n}" for n in range(nodes)]
    for name in names:
        builder.add_node(name, node)
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    found = []
    with tempfile.TemporaryDirectory(prefix="livetape-bench-") as folder:
        async with AsyncSqliteSaver.from_conn_string(str(Path(folder) / "checkpoints.db")) as saver:
            graph = builder.compile(checkpointer=saver)
            for n in range(times + 1):
                config = {"configurable": {"thread_id": str(n)}, "recursion_limit": nodes + 10}
                began = time.perf_counter()
                await graph.ainvoke({"value": 1}, config, durability="sync")
                found.append((time.perf_counter() - began) * 1000 / nodes)
    return found[1:]


if __name__ == "__main__":
    print("RESULT " + json.dumps(asyncio.run(measure_chain(**json.loads(sys.argv[2])))), flush=True)
