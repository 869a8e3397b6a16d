"""The metrics of several processes as one text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_HEADS: Final = (b"# HELP ", b"# TYPE ")


def merged(expositions: Iterable[bytes]) -> bytes:
    """Each metric once, with the samples of all of them together, as the format demands; nothing is added up.

    Samples must differ in a label: two with the same name and labels would be a duplicate.
    """
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for exposition in expositions:
        name = b""
        for line in exposition.splitlines():
            if line.startswith(_HEADS):
                name = line.split(b" ", 3)[2]
                known = heads.setdefault(name, [])
                if not any(head[:7] == line[:7] for head in known):
                    known.append(line)
            elif line:
                samples.setdefault(name, []).append(line)
    lines = [line for name in heads for line in (*heads[name], *samples.get(name, ()))]
    return b"\n".join([*samples.get(b"", ()), *lines, b""])
