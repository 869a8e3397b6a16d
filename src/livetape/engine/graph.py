"""Graphs of nodes and links: the wire models of the seed. Pure.

What is stored and sent is exactly these models; `validation.py` says whether a graph can run.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from livetape.engine.plain_text import Text

MAX_NODES = 2_000
MAX_LINKS = 10_000

Id = Annotated[Text, Field(min_length=1, max_length=200)]


class Link(BaseModel):
    """From an output pin of one node to an input pin of another (or of the same: a loop).

    `source_name` may end in selectors into the value (`_$_` list index, `_#_` dictionary key, `_@_` attribute);
    `sink_name` may end in the same to build a container. `is_static`: the last value is kept and reused.
    """

    model_config = ConfigDict(extra="ignore")

    id: Text = ""
    source_id: Id
    sink_id: Id
    source_name: Id
    sink_name: Id
    is_static: bool = False


class Node(BaseModel):
    """A block at its place in a graph. `input_default` gives values for pins that no link feeds."""

    model_config = ConfigDict(extra="ignore")

    id: Id
    block_id: Id
    input_default: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)


class Graph(BaseModel):
    """One version of a graph, as a client sends and exports it."""

    model_config = ConfigDict(extra="ignore")

    id: Text = ""
    version: int = 1
    is_active: bool = True
    name: Annotated[Text, Field(min_length=1, max_length=200)]
    description: Text = ""
    instructions: Text | None = None
    recommended_schedule_cron: Text | None = None
    forked_from_id: Text | None = None
    forked_from_version: int | None = None
    nodes: list[Node] = Field(default_factory=list, max_length=MAX_NODES)
    links: list[Link] = Field(default_factory=list, max_length=MAX_LINKS)


class GraphMeta(BaseModel):
    """A graph in a list."""

    id: str
    version: int
    is_active: bool
    name: str
    description: str
    instructions: str | None = None
    recommended_schedule_cron: str | None = None
    forked_from_id: str | None = None
    forked_from_version: int | None = None
    user_id: str
    created_at: datetime


class GraphModel(Graph):
    """A stored graph with what the server knows of it."""

    user_id: str
    created_at: datetime
    input_schema: dict[str, Any] = Field(default_factory=dict)
    output_schema: dict[str, Any] = Field(default_factory=dict)
    has_external_trigger: bool = False
    has_human_in_the_loop: bool = False
    has_sensitive_action: bool = False
    trigger_setup_info: dict[str, Any] | None = None
    credentials_input_schema: dict[str, Any] = Field(default_factory=dict)
