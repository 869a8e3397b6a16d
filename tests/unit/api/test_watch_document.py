"""The gateway's own OpenAPI document says of its routes what the document of the whole REST interface says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from livetape.api.watch_document import watch_document

WHOLE: dict[str, Any] = json.loads(Path(__file__).with_name("openapi.json").read_text())
OURS: dict[str, Any] = json.loads(json.dumps(watch_document("1.2.3")))


@pytest.mark.parametrize("path", OURS["paths"])
def test_each_operation_is_that_of_the_whole_interface(path: str) -> None:
    assert OURS["paths"][path] == {method: WHOLE["paths"][path][method] for method in OURS["paths"][path]}


def test_so_is_each_schema() -> None:
    for kind, described in OURS["components"].items():
        assert described == {name: WHOLE["components"][kind][name] for name in described}
    assert OURS["info"]["version"] == "1.2.3"
