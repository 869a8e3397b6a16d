"""A livetape server as a real process of its own, on a loopback port."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from livetape_process import COMMAND, LivetapeProcess, clean_environment
from support import ROOT

PLUGIN = ROOT / "tests" / "chaos" / "plugin"
DEV_USER = "3e53486c-cf57-477e-ba2a-cb02dc828e1a"

PATH = {"PYTHONPATH": str(PLUGIN)}
"""The blocks for tests."""


def cli(
    *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 30
) -> subprocess.CompletedProcess[str]:
    """Run one `livetape` command to its end."""
    return subprocess.run(
        [COMMAND, *args],
        env=clean_environment() | PATH | dict(env or {}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


class Server(LivetapeProcess):
    """`livetape up` on one data folder and one port. May be stopped, killed and started again."""

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        blocks: bool = False,
        command: Sequence[str] = (COMMAND,),
    ) -> None:
        told = {**PATH, **(env or {}), **({"LIVETAPE_BLOCKS": "chaosblocks:blocks"} if blocks else {})}
        super().__init__(data_dir.parent, "up", environment=told, port=port, command=command)
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(data_dir.name + ".log")

    def arguments(self) -> list[str]:
        return [*self.words, "--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(self.data_dir)]


MakeServer: TypeAlias = Callable[..., Server]
