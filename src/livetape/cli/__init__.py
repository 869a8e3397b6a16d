"""The command line. Importing this loads nothing else: `main` decides what is needed."""

from __future__ import annotations

import gc
import sys
from typing import Final

FEW_COLLECTIONS: Final = (50_000, 20, 20)
"""Importing makes many objects that live on; looking for garbage among them is an eighth of a start."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if arguments is None:  # the process is ours
        gc.set_threshold(*FEW_COLLECTIONS)
    argv = sys.argv[1:] if arguments is None else arguments
    if argv in (["--version"], ["-V"]):
        from livetape.cli.facts import package_version

        print(f"livetape {package_version()}")
        return 0
    try:
        import click as _  # noqa: F401 - is it there?
    except ModuleNotFoundError:
        print(
            "error[LT-E202]: the livetape command needs more than the event library\n"
            '  fix       pip install "livetape[platform]"   (or "livetape[gateway]" for the gateway alone)',
            file=sys.stderr,
        )
        return 2
    from livetape.cli.app import run

    return run(argv)
