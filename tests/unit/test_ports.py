"""Servers of tests do not take each other's ports."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import ports
from ports import BLOCK, FIRST, LAST, Ports

TAKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ports import Ports
given = Ports(Path(sys.argv[2]))
print(*(given.take() for _ in range(60)), flush=True)
sys.stdin.read()
"""


def test_each_port_is_handed_out_once_and_below_those_of_connections(tmp_path: Path) -> None:
    given = Ports(tmp_path)
    taken = [given.take() for _ in range(2 * BLOCK)]
    given.close()
    assert len(set(taken)) == len(taken)
    assert all(FIRST <= port <= LAST for port in taken)


def test_two_processes_share_no_port(tmp_path: Path) -> None:
    words = [sys.executable, "-c", TAKE, str(Path(ports.__file__).parent), str(tmp_path)]
    others = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    given = Ports(tmp_path)
    lines = [other.stdout.readline() for other in others if other.stdout is not None]
    taken = [{given.take() for _ in range(60)}, *({int(port) for port in line.split()} for line in lines)]
    for other in others:
        other.communicate("")
    given.close()
    assert [len(some) for some in taken] == [60, 60, 60]
    assert len(set.union(*taken)) == 180


def test_a_block_is_free_again_when_its_process_has_ended(tmp_path: Path) -> None:
    first = Ports(tmp_path)
    port = first.take()
    first.close()
    second = Ports(tmp_path)
    assert second.take() == port
    second.close()


def test_a_port_on_which_somebody_listens_is_passed_over(tmp_path: Path) -> None:
    probe = Ports(tmp_path)
    port = probe.take()
    probe.close()
    with socket.create_server(("127.0.0.1", port)):
        given = Ports(tmp_path)
        assert given.take() != port
        given.close()
