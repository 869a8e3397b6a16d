"""What happened, as the judges and the trace have it. The same seed gives the same history, and so the same hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from simulation.database import Change, Commit


class History:
    """Everything that happened, in order. `now` gives the virtual time."""

    def __init__(self) -> None:
        self.lines: list[tuple[float, str, tuple[Any, ...]]] = []

    def note(self, at: float, kind: str, *what: Any) -> None:
        self.lines.append((round(at, 6), kind, what))

    def commit(self, commit: Commit) -> None:
        changes = tuple(text for change in commit.changes if (text := _short(change)))
        self.note(commit.at, "commit", commit.host, commit.operation, *changes)

    @property
    def digest(self) -> str:
        """One value for the whole history."""
        hashed = hashlib.sha256()
        for line in self.lines:
            hashed.update(repr(line).encode())
        return hashed.hexdigest()[:16]

    def about(self, *words: str) -> Iterator[str]:
        """The lines that contain any of the words, and those of crashes; all of them without a word."""
        for at, kind, what in self.lines:
            text = f"{at:10.4f} {kind:<16} " + "  ".join(str(part) for part in what)
            if not words or kind in {"crash", "heal", "violation"} or any(word in text for word in words):
                yield text


def _short(change: Change) -> str:
    row = change.after or change.before
    assert row is not None
    match change.table:
        case "execution" if change.before is None:
            return f"{row['id']}:{row['status']}"
        case "execution" if change.after is None:
            return f"{row['id']} deleted"
        case "execution":
            assert change.before is not None
            held = f" held by {row['held']}" if row["held"] else ""
            return (
                f"{row['id']}:{change.before['status']}>{row['status']}({row['status_reason']})"
                f" lease {row['lease_no']} of {row['lease_owner']} until {row['lease_until']}"
                f"{' cancel' if row['cancel_requested'] else ''}{held}"
            )
        case "node_execution":
            before = "" if change.before is None else f"{change.before['status']}>"
            return f"{row['execution_id']}/{row['seq']}:{before}{row['status']}"
        case "event":
            return f"tape{row['tape_id']}#{row['number']} {row['event_type'].removesuffix('_update')}"
        case "doorbell":
            verb = "+" if change.before is None else "-" if change.after is None else "~"
            return f"bell{verb}{row['id']} {row['graph_exec_id']}"
        case "review":
            return f"review of {row['node_exec_id']}: {row['status']}"
        case "key_value":
            return f"{row['key']} booked{'' if change.before is None else ' again'}"
        case "queue_pause":
            return "goes on" if change.after is None else "paused"
        case _:
            return ""
