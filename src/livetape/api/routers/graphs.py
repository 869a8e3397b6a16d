"""Graphs and their versions."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Query

from livetape.api.bodies import Name
from livetape.api.deps import BlocksDep, GraphsDep, UserId, signed_in_router
from livetape.api.errors import ApiError
from livetape.api.export import without_secrets
from livetape.api.models import MAX_VERSION, CreateGraph, DeleteGraphResponse, SetGraphActiveVersion
from livetape.engine.graph import Graph, GraphMeta, GraphModel

GraphVersion = Annotated[int, Path(ge=1, le=MAX_VERSION)]

router = signed_in_router("/api/graphs", "graphs")


@router.get("", summary="List user graphs")
async def list_graphs(user_id: UserId, graphs: GraphsDep) -> list[GraphMeta]:
    """The active version of each of the caller's graphs."""
    return await graphs.list(user_id)


@router.post("", summary="Create new graph")
async def create_graph(body: CreateGraph, user_id: UserId, graphs: GraphsDep) -> GraphModel:
    """Stores a graph as version 1. The graph, its nodes and its links get new ids."""
    return await graphs.create(user_id, body.graph)


@router.get("/{graph_id}", summary="Get specific graph")
async def get_graph(
    graph_id: Name,
    user_id: UserId,
    graphs: GraphsDep,
    blocks: BlocksDep,
    version: Annotated[int | None, Query(ge=1, le=MAX_VERSION)] = None,
    for_export: bool = False,
) -> GraphModel:
    """The active version, or the one that is asked for. `for_export` leaves out secrets and the owner."""
    graph = await graphs.get(user_id, graph_id, version)
    return without_secrets(graph, blocks) if for_export else graph


@router.put("/{graph_id}", summary="Update graph version")
async def update_graph(graph_id: Name, graph: Graph, user_id: UserId, graphs: GraphsDep) -> GraphModel:
    """Stores a new version; it becomes the active one when `is_active` is set."""
    if graph.id and graph.id != graph_id:
        raise ApiError(400, "The graph id in the body is not the one in the path", code="graph_id_mismatch")
    return await graphs.update(user_id, graph_id, graph)


@router.delete("/{graph_id}", summary="Delete graph permanently")
async def delete_graph(graph_id: Name, user_id: UserId, graphs: GraphsDep) -> DeleteGraphResponse:
    """Deletes all versions of the graph."""
    return DeleteGraphResponse(version_counts=await graphs.delete(user_id, graph_id))


@router.get("/{graph_id}/versions", summary="Get all graph versions")
async def list_versions(graph_id: Name, user_id: UserId, graphs: GraphsDep) -> list[GraphModel]:
    """Every version of the graph."""
    return list(await graphs.versions(user_id, graph_id))


@router.put("/{graph_id}/versions/active", summary="Set active graph version")
async def set_active_version(graph_id: Name, body: SetGraphActiveVersion, user_id: UserId, graphs: GraphsDep) -> None:
    """Chooses the version that is used when none is named."""
    await graphs.set_active(user_id, graph_id, body.active_graph_version)


@router.get("/{graph_id}/versions/{version}", summary="Get graph version")
async def get_version(
    graph_id: Name,
    version: GraphVersion,
    user_id: UserId,
    graphs: GraphsDep,
    blocks: BlocksDep,
    for_export: bool = False,
) -> GraphModel:
    """One version of the graph. `for_export` leaves out secrets and the owner."""
    graph = await graphs.get(user_id, graph_id, version)
    return without_secrets(graph, blocks) if for_export else graph
