"""How the two event endpoints describe themselves: their reader is given, and does its own content negotiation."""

from __future__ import annotations

from typing import Any, Final

EVENTS_OPENAPI: Final[dict[str, Any]] = {
    "openapi_extra": {
        "parameters": [
            {
                "name": "after",
                "in": "query",
                "required": False,
                "description": "JSON page: only events after this offset.",
                "schema": {"type": "integer", "minimum": 0, "default": 0},
            },
            {
                "name": "limit",
                "in": "query",
                "required": False,
                "description": "JSON page: at most so many events.",
                "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
            },
            {
                "name": "types",
                "in": "query",
                "required": False,
                "description": "Only events of these types, divided by commas.",
                "schema": {"type": "string"},
            },
            {
                "name": "since",
                "in": "query",
                "required": False,
                "description": "Stream: where to begin, `<epoch>-<offset>`, `earliest` or `latest`.",
                "schema": {"type": "string"},
            },
            {
                "name": "Last-Event-ID",
                "in": "header",
                "required": False,
                "description": "Stream: the id of the last event that was received, `<epoch>-<offset>`.",
                "schema": {"type": "string"},
            },
        ],
    },
    "responses": {
        200: {
            "description": "A page of events, or by `Accept` a stream of them. "
            "`X-Stream-Position` says where a stream really began.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/event-stream": {"schema": {"type": "string"}},
                "application/x-ndjson": {"schema": {"type": "string"}},
            },
        }
    },
}
