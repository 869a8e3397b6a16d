"""Every error that the command line can show: stable code, exit code, remedy. Source of docs/reference/errors.md."""

from __future__ import annotations

from typing import Final, NamedTuple

from livetape.errors import ConfigError, GraphValidationError, LivetapeError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CONFIG: Final = 3
EXIT_CONNECT: Final = 4
EXIT_AUTH: Final = 5
EXIT_NOT_FOUND: Final = 6
EXIT_CONFLICT: Final = 7
EXIT_TIMEOUT: Final = 124
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final[dict[int, str]] = {
    0: "good",
    EXIT_FAILED: "the execution or operation failed",
    EXIT_USAGE: "wrong use of the command",
    EXIT_CONFIG: "the configuration cannot work",
    EXIT_CONNECT: "cannot connect",
    EXIT_AUTH: "not signed in, or not allowed",
    EXIT_NOT_FOUND: "not found",
    EXIT_CONFLICT: "the present state does not allow it",
    EXIT_TIMEOUT: "took longer than --timeout",
    EXIT_INTERRUPTED: "interrupted",
}


class Row(NamedTuple):
    """One line of the table. `key` is `LivetapeError.code`, or a name that only the command line knows."""

    code: str
    key: str
    exit: int
    what: str
    fix: str


TABLE: Final[tuple[Row, ...]] = (
    Row("LT-E100", "error", 1, "Something in livetape failed.", "run again with -v and report what it prints"),
    Row("LT-E101", "internal", 1, "An error that nobody foresaw.", "run again with -v and report the traceback"),
    Row("LT-E102", "closed", 1, "Something was used after it was closed.", "run again with -v and report it"),
    Row("LT-E103", "interrupted", 130, "Interrupted by Ctrl-C or a signal.", "start the command again"),
    Row("LT-E201", "usage", 2, "The command was used wrongly.", "see the command's --help"),
    Row("LT-E202", "missing_extra", 2, "A part of livetape is not installed.", 'pip install "livetape[platform]"'),
    Row("LT-E203", "bad_input", 2, "Data given to the command is not what it needs.", "correct the data named above"),
    Row("LT-E204", "ambiguous", 2, "A name fits more than one thing.", "use the id: livetape graphs list"),
    Row("LT-E300", "config", 3, "The configuration cannot work.", "correct the setting named above"),
    Row("LT-E301", "port_in_use", 3, "Another process listens on the port.", "choose another port with --port"),
    Row("LT-E302", "data_dir_in_use", 3, "Another server uses the data folder.", "stop it, or use another --data-dir"),
    Row("LT-E303", "data_dir", 3, "The data folder cannot be used.", "make it writable, or use another --data-dir"),
    Row("LT-E304", "store", 3, "The database failed.", "livetape doctor; restore the file from a copy if it is broken"),
    Row("LT-E400", "connect", 4, "The server cannot be reached.", "start it with livetape up, or correct --url"),
    Row("LT-E401", "no_server", 4, "No server was found.", "start one with livetape up, or name it with --url"),
    Row("LT-E402", "connection_lost", 4, "The connection was lost and did not come back.", "see the server's log"),
    Row("LT-E403", "bad_answer", 4, "The server gave an answer that is not understood.", "check --url and versions"),
    Row("LT-E404", "server", 4, "The server failed.", "see the server's log; then try again"),
    Row("LT-E405", "store_unavailable", 4, "The database cannot be reached.", "livetape doctor; then try again"),
    Row("LT-E406", "commit_unknown", 4, "Nobody knows whether it was written.", "look at the state, then decide"),
    Row("LT-E407", "lock_timeout", 4, "Somebody else held a lock all the time.", "wait, then try again"),
    Row("LT-E410", "bus", 4, "The event bus failed.", "see the server's log; then try again"),
    Row("LT-E411", "bus_unavailable", 4, "The event bus cannot be reached.", "check LIVETAPE_BUS; then try again"),
    Row("LT-E412", "codec", 4, "Bytes that are not an event.", "check that the versions on both sides fit"),
    Row("LT-E413", "channel", 2, "A channel name or key that may not be used here.", "use letters, digits and . _ - :"),
    Row("LT-E414", "decryption", 4, "An event cannot be decrypted.", "give the key that it was encrypted with"),
    Row("LT-E420", "log", 4, "The event log failed.", "see the server's log; then try again"),
    Row("LT-E421", "log_unavailable", 4, "The event log cannot be reached.", "livetape doctor; then try again"),
    Row("LT-E422", "position_lost", 7, "The position was trimmed or its tape began anew.", "use --since earliest"),
    Row("LT-E423", "tape_hole", 7, "A copy would leave a hole in the tape.", "copy the missing events first"),
    Row("LT-E430", "queue", 4, "The queue failed.", "see the server's log; then try again"),
    Row("LT-E431", "queue_unavailable", 4, "The queue cannot be reached.", "check LIVETAPE_QUEUE; then try again"),
    Row("LT-E440", "blob", 4, "The store of large values failed.", "restore its folder from a copy"),
    Row(
        "LT-E441", "blob_unavailable", 4, "The store of large values cannot be used.", "livetape doctor; then try again"
    ),
    Row("LT-E500", "auth", 5, "Access was refused.", "livetape token create --user YOU; pass it with --token"),
    Row(
        "LT-E501",
        "unauthenticated",
        5,
        "No token was given.",
        "pass --token; livetape token create --user YOU makes one",
    ),
    Row("LT-E502", "token_expired", 5, "The token has expired.", "make a new one: livetape token create --user YOU"),
    Row("LT-E503", "not_authorized", 5, "This user may not do it.", "use the token of a user who may"),
    Row(
        "LT-E504",
        "bad_token",
        5,
        "The token is not valid.",
        "make one with this server's key: livetape token create",
    ),
    Row("LT-E600", "not_found", 6, "It does not exist, or this user may not see it.", "check the id and the user"),
    Row("LT-E700", "conflict", 7, "The present state does not allow it.", "look at the state, then decide"),
    Row("LT-E701", "lease_lost", 7, "Another worker owns the execution now.", "nothing: the other worker goes on"),
    Row("LT-E710", "limit", 7, "A limit was reached.", "raise the limit in the settings, or ask for less"),
    Row("LT-E711", "rate_limited", 7, "Too many requests.", "wait, then try again"),
    Row("LT-E800", "graph", 2, "The graph cannot be used.", "correct the graph"),
    Row("LT-E801", "graph_validation", 2, "The graph is not valid.", "correct the nodes named above"),
    Row("LT-E802", "unknown_block", 2, "No block with this id is installed.", "install it; see LIVETAPE_BLOCKS"),
    Row("LT-E803", "block", 1, "A block failed.", "livetape tail EXECUTION --since earliest shows where"),
    Row("LT-E804", "block_input", 1, "The input does not fit the block.", "correct the input of the node"),
    Row("LT-E805", "block_execution", 1, "A block said that it failed.", "see the node's error output"),
    Row("LT-E900", "timeout", 124, "It took longer than --timeout.", "give more time; an execution goes on meanwhile"),
)

BY_KEY: Final[dict[str, Row]] = {row.key: row for row in TABLE}


class CommandError(LivetapeError):
    """A command cannot go on."""

    code = "error"

    def __init__(
        self,
        key: str,
        what: str,
        /,
        *,
        because: str | None = None,
        set_by: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what)
        self.key = key
        self.because = because
        self.set_by = set_by
        self.fix = fix


def row_of(error: BaseException) -> Row:
    """The line of the table for this error; an unknown class has that of its nearest known ancestor."""
    if isinstance(error, CommandError):
        return BY_KEY.get(error.key, BY_KEY["error"])
    if isinstance(error, LivetapeError):
        for cls in type(error).__mro__:
            found = BY_KEY.get(getattr(cls, "code", ""))
            if found is not None:
                return found
    return BY_KEY["internal"]


def describe(error: BaseException) -> str:
    """The error as text of up to five lines; no traceback."""
    row = row_of(error)
    if row.key == "internal":
        return "\n".join(_lines(row, "internal error", f"{type(error).__name__}: {error}", None, row.fix))
    what = error.message if isinstance(error, LivetapeError) else str(error)
    because = set_by = fix = None
    if isinstance(error, CommandError | ConfigError):
        because, set_by, fix = error.because, error.set_by, error.fix
    elif isinstance(error, GraphValidationError):
        because = node_problems(error.node_errors)
    elif isinstance(error, LivetapeError):
        fix = str(error.context["fix"]) if error.context.get("fix") else None
        if error.__cause__ is not None and str(error.__cause__) not in what:
            because = str(error.__cause__) or type(error.__cause__).__name__
    return "\n".join(_lines(row, what, because, set_by, fix or row.fix))


def node_problems(node_errors: object) -> str | None:
    """`{node: {field: message}}` as lines."""
    if not isinstance(node_errors, dict):
        return None
    lines = [
        f"{node}: {field}: {message}"
        for node, problems in node_errors.items()
        if isinstance(problems, dict)
        for field, message in problems.items()
    ]
    return "\n".join(lines) or None


def _lines(row: Row, what: str, because: str | None, set_by: str | None, fix: str) -> list[str]:
    lines = [f"error[{row.code}]: {what}"]
    for label, text in (("because", because), ("set by", set_by), ("fix", fix)):
        if text:
            first, *rest = text.splitlines()
            lines.append(f"  {label:<9} {first}")
            lines.extend(f"  {'':<9} {line}" for line in rest)
    return lines
