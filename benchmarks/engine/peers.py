"""Other engines beside ours in the same table: DBOS on PostgreSQL, Celery on Redis, LangGraph on SQLite.

Installed by pip into a cache folder, apart from our own environment, or skipped with the reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PYTHON: Final = CACHE / "livetape-bench-engine" / "peers-python"
SOURCES: Final = Path(__file__).parent / "peers"
PACKAGES: Final = (
    "celery==5.7.0",
    "dbos==3.4.0",
    "langgraph==1.2.22",
    "langgraph-checkpoint-sqlite==3.1.2",
    "redis==8.1.0",
)
LONGEST_S: Final = 180


class UnavailableError(Exception):
    """A peer that cannot be measured; the text says why."""


def install() -> None:
    """Once: a file that names what is there is written last."""
    done = PYTHON / "installed"
    if done.exists() and done.read_text() == "\n".join(PACKAGES):
        return
    shutil.rmtree(PYTHON, ignore_errors=True)
    PYTHON.parent.mkdir(parents=True, exist_ok=True)
    print(f"installing {', '.join(PACKAGES)} ...", file=sys.stderr, flush=True)
    pip = [str(PYTHON / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
    for command in ([sys.executable, "-m", "venv", str(PYTHON)], pip):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            raise UnavailableError(f"{' '.join(command[:4])} failed: {said[-1][:300] if said else error}") from None
    done.write_text("\n".join(PACKAGES))


def measure(peer: str, scenario: str, **arguments: Any) -> Any:
    """What the peer's program answers.

    Raises:
        UnavailableError: it could not be measured.
    """
    program = SOURCES / f"{peer}_peer.py"
    words = [str(PYTHON / "bin" / "python"), str(program), scenario, json.dumps(arguments)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=False)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{peer} did not answer within {LONGEST_S} s") from None
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    said = (done.stderr or done.stdout).strip().splitlines()
    raise UnavailableError(f"{peer} failed: {said[-1][:300] if said else done.returncode}")
