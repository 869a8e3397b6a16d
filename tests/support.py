"""What several kinds of tests share. Nothing here knows livetape."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ports import Ports

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that nobody else gets while this process lives."""
    return _ports().take()


@cache
def _ports() -> Ports:
    return Ports()


def search_path() -> str:
    """PATH, and where Debian keeps servers that users do not start by name; `scripts/services` looks there too."""
    postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return os.pathsep.join([os.environ.get("PATH", ""), *map(str, postgres), "/usr/lib/rabbitmq/bin", "/usr/sbin"])


@dataclass(frozen=True)
class Service:
    """A program beside Python that tests need: one line of `tests/services.txt`."""

    name: str
    command: str
    packages: tuple[str, ...]

    @property
    def path(self) -> str | None:
        return shutil.which(self.command, path=search_path())

    @property
    def remedy(self) -> str:
        return f"{self.command} is missing. Type: sudo apt-get install {' '.join(self.packages)}"


def services(table: str | None = None) -> dict[str, Service]:
    """The services by name; the same table that `scripts/services` reads."""
    if table is None:
        table = (ROOT / "tests" / "services.txt").read_text()
    found = {}
    for line in table.splitlines():
        if line.strip() and not line.startswith("#"):
            name, command, *packages = line.split()
            found[name] = Service(name, command, tuple(packages))
    return found
