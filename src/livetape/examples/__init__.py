"""Graphs and texts to start with, shipped inside the package. README.md says what they are and where they come from."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def example_graphs() -> list[dict[str, Any]]:
    """The graphs as JSON values of the `Graph` wire model, in the order of their file names."""
    folder = files(__name__).joinpath("graphs")
    return [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".json")
    ]


def example_files() -> dict[str, bytes]:
    """The files that the graphs read, by name: they belong in the data folder's `files/`."""
    folder = files(__name__).joinpath("texts")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(".txt")}
