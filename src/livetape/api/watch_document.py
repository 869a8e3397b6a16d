"""The OpenAPI document of a process that only watches: of its routes it says what the whole REST interface says."""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from livetape.api.bodies import ErrorBody, JobInfo, JobPosition, PublishJobEvent, Version
from livetape.api.routers.streams import EVENTS_OPENAPI

_MODELS: Final = (ErrorBody, JobInfo, JobPosition, PublishJobEvent, Version)
_SIGNED_IN: Final[list[dict[str, list[str]]]] = [{"HTTPBearerJWT": []}]
_EXECUTION: Final = "/api/graphs/{graph_id}/executions/{graph_exec_id}/events"
_JOB: Final = "/api/jobs/{job_id}"
_EVENTS: Final = "a page of JSON, or by `Accept` a stream that ends after the final event."


def watch_document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1, as JSON values."""
    _, schemas = models_json_schema(
        [(model, "serialization" if model is not PublishJobEvent else "validation") for model in _MODELS],
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "livetape gateway",
            "summary": "Live events and replay of executions and jobs.",
            "version": version,
        },
        "paths": {
            _EXECUTION: {"get": _events("graphs", "Read execution events", f"The events of an execution: {_EVENTS}")},
            f"{_JOB}/events": {
                "get": _events("jobs", "Read job events", f"The events of a job: {_EVENTS}"),
                "post": _publish(),
            },
            _JOB: {"get": _job()},
            "/version": {"get": _version()},
        },
        "components": {
            "schemas": _said(dict(sorted(schemas["$defs"].items()))),
            "securitySchemes": {"HTTPBearerJWT": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _said(value: Any) -> Any:
    """Without what says nothing: that the default of what may be left out is null."""
    if isinstance(value, dict):
        return {name: _said(inner) for name, inner in value.items() if inner is not None}
    return [_said(inner) for inner in value] if isinstance(value, list) else value


def _operation(
    tag: str, summary: str, description: str, responses: dict[str, Any], *, path: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "tags": ["v1", tag],
        "summary": summary,
        "description": description,
        "parameters": [_in_path(name) for name in path],
        "security": _SIGNED_IN,
        "responses": {**responses, "default": _body("Error", "ErrorBody")},
    }
    return told | more


def _events(tag: str, summary: str, description: str) -> dict[str, Any]:
    path = ("graph_id", "graph_exec_id") if tag == "graphs" else ("job_id",)
    responses = {str(status): answer for status, answer in EVENTS_OPENAPI["responses"].items()}
    told = _operation(tag, summary, description, responses, path=path, operationId=_identifier("get", summary))
    return told | {"parameters": told["parameters"] + EVENTS_OPENAPI["openapi_extra"]["parameters"]}


def _publish() -> dict[str, Any]:
    return _operation(
        "jobs",
        "Publish job event",
        "Appends one event to the tape of the job; the first to publish owns it. Answers when the event is durable.",
        {"201": _body("Successful Response", "JobPosition")},
        path=("job_id",),
        operationId=_identifier("post", "Publish job event"),
        requestBody={"required": True, "content": _content("PublishJobEvent")},
    )


def _job() -> dict[str, Any]:
    return _operation(
        "jobs",
        "Get job",
        "What is known of the job's tape.",
        {"200": _body("Successful Response", "JobInfo")},
        path=("job_id",),
        operationId=_identifier("get", "Get job"),
    )


def _version() -> dict[str, Any]:
    return {
        "tags": ["health"],
        "summary": "Version",
        "description": "What runs here.",
        "operationId": "getHealthVersion",
        "responses": {"200": _body("Successful Response", "Version"), "default": _body("Error", "ErrorBody")},
    }


def _identifier(method: str, summary: str) -> str:
    """As `operation_id` makes them."""
    return f"{method}V1" + "".join(word.capitalize() for word in summary.split())


def _in_path(name: str) -> dict[str, Any]:
    title = name.replace("_", " ").title()
    schema = {"type": "string", "minLength": 1, "maxLength": 200, "title": title}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _body(description: str, model: str) -> dict[str, Any]:
    return {"description": description, "content": _content(model)}


def _content(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}
