"""Runs the code blocks of a page of documentation, in order, as its reader would.

The language after the opening fence decides; a block without one, or with one that is not listed here, is an error.

`sh`      With `$ ` prompts: each command is run, and the lines up to the next prompt are its output, exactly; no line,
          no output. `...` inside a line stands for anything in that line, alone on a line for any number of lines.
          Without prompts: each command is run and its output is not looked at. A command must end with exit code 0,
          or with the one it names in a comment at its end: `# exit 3`.
          A command that starts a server (`scripts/up`, `livetape up`) is started behind the scenes: the next command
          runs when `/readyz` answers 200, its stated output is how its output begins, and it is stopped, which must
          go well, at the end of the page.
`python`  Run. The blocks of a page share one module, as if they stood in one file.
`json`    Must parse. `toml` likewise.
`text`    Not run, as are `http`, `html` and `diff`.

All commands of a page share one bash (`set -eu`): folder and variables last from block to block. It begins in an
empty folder that has `scripts`, `examples` and `docs` of this repository. The ports 8420 to 8429 of a page are replaced
by free ones, and back in the output. `scripts/test` and `scripts/check` collect a few tests and do not run them.
"""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from markdown_it import MarkdownIt

from support import ROOT, free_port

NOT_RUN = {"text", "http", "html", "diff"}
LANGUAGES = {"sh", "python", "json", "toml"} | NOT_RUN
PRIVATE = re.compile(r"(LIVETAPE|PYTEST|COV)_\w+|VIRTUAL_ENV|PYTHON(PATH|HOME)|(NO|FORCE)_COLOR|CLICOLOR\w*")
A_FEW = "tests/docs/test_conftest.py tests/integration/test_stop_many.py tests/integration/test_redis_link.py"
"""Of every part of `scripts/test` some: collecting all tests once for each part takes a minute."""

EXIT = re.compile(r"#\s*exit (\d+)\s*$")
PORT = re.compile(r"(?<![\d.])842\d(?!\d)")


class PageError(Exception):
    """A block that does not do what its page says; the message begins with `page:line`."""


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    line: int
    text: str
    expected: str | None  # None: not looked at
    exit_code: int


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read_blocks(text: str, page: str = "page") -> list[Block]:
    """The code blocks of a page, wherever they stand (in lists and quotes too)."""
    blocks = []
    for token in MarkdownIt("commonmark").parse(text):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "code_block":
            raise PageError(f"{page}:{line}: an indented code block: use a fence and name its language")
        if token.type == "fence":
            language = token.info.strip()
            if language not in LANGUAGES:
                what = f"'{language}'" if language else "no language"
                raise PageError(f"{page}:{line}: a block with {what}: use one of {', '.join(sorted(LANGUAGES))}")
            blocks.append(Block(line, language, token.content))
    return blocks


def read_commands(block: Block, page: str = "page") -> list[Command]:
    """The commands of an `sh` block with what they promise."""
    lines = block.text.splitlines()
    prompts = any(line.startswith("$ ") for line in lines)
    commands: list[Command] = []
    at = 0
    while at < len(lines):
        start = at
        line = lines[at]
        at += 1
        if prompts and not line.startswith("$ "):
            raise PageError(f"{page}:{block.line + 1 + start}: output before the first command")
        text = line.removeprefix("$ ") if prompts else line
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        while not is_complete(text):
            if at == len(lines):
                raise PageError(f"{page}:{block.line + 1 + start}: not a complete command: {text}")
            text += "\n" + lines[at]
            at += 1
        expected = None
        if prompts:
            output = []
            while at < len(lines) and not lines[at].startswith("$ "):
                output.append(lines[at])
                at += 1
            expected = "\n".join(output)
        stated = EXIT.search(text)
        commands.append(Command(block.line + 1 + start, text, expected, int(stated[1]) if stated else 0))
    return commands


def is_complete(text: str) -> bool:
    """Whether bash would run this, or wait for another line."""
    if text.endswith("\\"):
        return False
    english = {**os.environ, "LC_ALL": "C"}
    parsed = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False, env=english)
    waiting = ("unexpected end of file", "unexpected EOF", "delimited by end-of-file")
    return not any(words in parsed.stderr for words in waiting)


def pattern(expected: str) -> str:
    """A regular expression for an output in which `...` stands for anything. It ends after a newline."""
    parts = []
    for line in strip(expected):
        if line.strip() == "...":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(".*?".join(re.escape(piece) for piece in line.split("...")) + r"\n")
    return "".join(parts)


def strip(output: str) -> list[str]:
    """Lines without spaces at their ends, without empty lines at the end."""
    return [line.rstrip() for line in output.rstrip().splitlines()]


def matches(expected: str, output: str, *, begins: bool = False) -> bool:
    text = "".join(line + "\n" for line in strip(output))
    found = re.match(pattern(expected), text) if begins else re.fullmatch(pattern(expected), text)
    return found is not None


# ---- Running ---------------------------------------------------------------------------------------------------------


class Runner:
    """One page, from its first block to its last."""

    def __init__(self, page: str, folder: Path, *, timeout_s: float = 60, path: Path | None = None) -> None:
        self.page = page
        self.folder = folder
        self.timeout_s = timeout_s
        self.ports: dict[str, str] = {}
        self.hidden = folder / ".run"
        self.work = folder / "work"
        self.hidden.mkdir(parents=True)
        self.work.mkdir()
        for name in ("scripts", "examples", "docs"):
            if (ROOT / name).exists():
                (self.work / name).symlink_to(ROOT / name)
        self.environment = {name: value for name, value in os.environ.items() if not PRIVATE.fullmatch(name)}
        self.environment["PATH"] = f"{path or Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment["PYTEST_ADDOPTS"] = f"--collect-only -q {A_FEW}"
        self.environment["PYTHONUNBUFFERED"] = "1"
        self._count = 0

    def run(self, text: str) -> int:
        """Run all blocks; answers how many ran. Raises `PageError` at the first that breaks its promise."""
        blocks = read_blocks(text, self.page)
        ran = 0
        with ExitStack() as stack:
            shell: Shell | None = None
            module: Module | None = None
            for block in blocks:
                if block.language == "sh":
                    shell = shell or stack.enter_context(Shell(self))
                    for command in read_commands(block, self.page):
                        shell.run(command)
                elif block.language == "python":
                    module = module or stack.enter_context(Module(self))
                    module.run(block)
                elif block.language in NOT_RUN:
                    continue
                else:
                    self.parse(block)
                ran += 1
            if shell is not None:
                shell.stop_servers()
        return ran

    def parse(self, block: Block) -> None:
        try:
            json.loads(block.text) if block.language == "json" else tomllib.loads(block.text)
        except ValueError as error:
            raise self.error(block.line, f"not {block.language}: {error}") from error

    def error(self, line: int, message: str, output: str = "") -> PageError:
        shown = "\n" + "\n".join("    " + text for text in output.splitlines()[-60:]) if output else ""
        return PageError(f"{self.page}:{line}: {message}{shown}")

    def file(self, suffix: str) -> Path:
        self._count += 1
        return self.hidden / f"{self._count:03}{suffix}"

    def to_real(self, text: str) -> str:
        """Replace the ports of the page by free ones."""

        def port(found: re.Match[str]) -> str:
            return self.ports.setdefault(found[0], str(free_port()))

        return PORT.sub(port, text)

    def to_page(self, output: str) -> str:
        """Replace the free ports by those of the page."""
        for shown, real in self.ports.items():
            output = re.sub(rf"(?<!\d){real}(?!\d)", shown, output)
        return output


class Child:
    """A process that runs what it is told, and all that it starts; nothing of it is left in the end."""

    def __init__(self, runner: Runner, arguments: list[str]) -> None:
        self.runner = runner
        self.answers, control = os.pipe()
        self.process = subprocess.Popen(
            [*arguments, str(control)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=runner.work,
            env=runner.environment,
            pass_fds=[control],
            start_new_session=True,
        )
        os.close(control)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        os.close(self.answers)

    def kill(self) -> None:
        kill_group(self.process.pid)
        self.process.wait()

    def tell(self, order: str) -> int | None:
        """Give an order and wait for its exit code. When the process itself ends, that is its exit code; None: late."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended before; its exit code says so below
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
        until = time.monotonic() + self.runner.timeout_s
        answer = b""
        while not answer.endswith(b"\n"):
            if select.select([self.answers], [], [], 0.05)[0]:
                received = os.read(self.answers, 100)
                if not received:
                    return self.process.wait()
                answer += received
            elif self.process.poll() is not None:
                return self.process.returncode
            elif time.monotonic() > until:
                return None
        return int(answer)


@dataclass
class Server:
    line: int
    group: int
    output: Path
    ended: Path

    def exit_code(self) -> int | None:
        """None while it runs."""
        text = self.ended.read_text() if self.ended.exists() else ""
        return int(text) if text.endswith("\n") else None


class Shell(Child):
    """The bash of a page, and the servers that it starts."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, ["bash", "--noprofile", "--norc", "-c", BASH, "bash"])
        self.servers: list[Server] = []

    def kill(self) -> None:
        for server in self.servers:
            kill_group(server.group)
        super().kill()

    def run(self, command: Command) -> None:
        if starts_server(command):
            self.start_server(command)
        else:
            self.run_command(command)

    def run_command(self, command: Command) -> None:
        script, output = self.runner.file(".sh"), self.runner.file(".out")
        script.write_text(self.runner.to_real(command.text) + "\n")
        mode = "+e" if command.exit_code else "-e"
        code = self.tell(f"{mode} {shlex.quote(str(script))} {shlex.quote(str(output))}")
        said = self.runner.to_page(output.read_text(errors="replace") if output.exists() else "")
        if code is None:
            raise self.runner.error(command.line, f"`{command.text}` did not end in {self.runner.timeout_s:g} s", said)
        if code == 0 and self.process.poll() is not None:
            raise self.runner.error(command.line, f"`{command.text}` ended the shell of the page", said)
        if code != command.exit_code:
            raise self.runner.error(
                command.line, f"`{command.text}` ended with exit code {code}, the page says {command.exit_code}", said
            )
        if command.expected is not None and not matches(command.expected, said):
            raise self.runner.error(command.line, differs(command), said)

    def start_server(self, command: Command) -> None:
        text, port = self.with_port(self.runner.to_real(command.text))
        script, output, ended, group = (self.runner.file(suffix) for suffix in (".sh", ".out", ".ended", ".group"))
        script.write_text(
            IN_BACKGROUND.format(
                command=text,
                output=shlex.quote(str(output)),
                ended=shlex.quote(str(ended)),
                group=shlex.quote(str(group)),
            )
        )
        if self.tell(f"-e {shlex.quote(str(script))} /dev/null") != 0:
            raise self.runner.error(command.line, f"`{command.text}` could not be started")
        server = Server(command.line, int(group.read_text()), output, ended)
        self.servers.append(server)
        until = time.monotonic() + self.runner.timeout_s
        while not is_ready(port):
            if server.exit_code() is not None:
                raise self.runner.error(
                    command.line, f"`{command.text}` ended with exit code {server.exit_code()}", self.said(server)
                )
            if time.monotonic() > until:
                raise self.runner.error(
                    command.line,
                    f"`{command.text}`: no answer from /readyz in {self.runner.timeout_s:g} s",
                    self.said(server),
                )
            time.sleep(0.05)
        while command.expected is not None and not matches(command.expected, self.said(server), begins=True):
            if time.monotonic() > until:
                raise self.runner.error(command.line, differs(command), self.said(server))
            time.sleep(0.05)

    def with_port(self, text: str) -> tuple[str, int]:
        words = shlex.split(text, comments=True)
        for at, word in enumerate(words):
            if word == "--port" and at + 1 < len(words):
                return text, int(words[at + 1])
            if word.startswith("--port="):
                return text, int(word.removeprefix("--port="))
        port = self.runner.to_real("8420")
        return re.sub(r"(^|[/\s])up\b", rf"\g<0> --port {port}", text, count=1), int(port)

    def said(self, server: Server) -> str:
        return self.runner.to_page(server.output.read_text(errors="replace"))

    def stop_servers(self) -> None:
        for server in self.servers:
            if server.exit_code() is None:
                os.killpg(server.group, signal.SIGTERM)
            until = time.monotonic() + self.runner.timeout_s
            while server.exit_code() is None and time.monotonic() < until:
                time.sleep(0.02)
            if server.exit_code() != 0:
                raise self.runner.error(
                    server.line, f"the server was asked to stop: exit code {server.exit_code()}", self.said(server)
                )


class Module(Child):
    """The Python module that the blocks of a page make up."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner, [sys.executable, "-c", PYTHON])

    def run(self, block: Block) -> None:
        script, output = self.runner.file(".py"), self.runner.file(".out")
        # Empty lines before the code: a traceback names the line of the page.
        script.write_text("\n" * block.line + self.runner.to_real(block.text))
        code = self.tell(json.dumps([str(script), f"{self.runner.page}", str(output)]))
        said = output.read_text(errors="replace") if output.exists() else ""
        if code != 0:
            what = "did not end" if code is None else "failed"
            raise self.runner.error(block.line, f"the python block {what}", said)


def kill_group(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def starts_server(command: Command) -> bool:
    if command.exit_code:
        return False  # a start that is refused is a command like any other
    try:
        words = shlex.split(command.text, comments=True)
    except ValueError:
        return False
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    return words[:1] == ["scripts/up"] or words[:2] in (["livetape", "up"], ["scripts/livetape", "up"])


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def differs(command: Command) -> str:
    stated = "\n".join("    " + line for line in strip(command.expected or "")) or "    (nothing)"
    return f"`{command.text}` did not say what the page says:\n{stated}\nIt said:"


# An order is `MODE SCRIPT OUTPUT`. With -e a failing command ends the shell: that is its answer.
BASH = r"""
__control=$1
while IFS= read -r __order; do
    eval "__order=($__order)"
    set -- "${__order[@]}"
    set "$1" -u
    . "$2" </dev/null >"$3" 2>&1
    printf '%s\n' "$?" >&"$__control"
    set +eu
done
"""

# A group of its own, so that a signal reaches the server itself. The trap keeps this shell for the server's exit code.
IN_BACKGROUND = """
set -m
(
trap : TERM
set +e
{command}
echo $? >{ended}
) </dev/null >{output} 2>&1 &
set +m
echo $! >{group}
"""

# An order is a JSON list: script, name, output.
PYTHON = """
import json, os, sys, traceback
control, module = int(sys.argv.pop()), sys.modules["__main__"].__dict__
for order in sys.stdin:
    script, name, output = json.loads(order)
    sys.stdout = sys.stderr = open(output, "w")
    try:
        exec(compile(open(script).read(), name, "exec"), module)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os.write(control, b"%d\\n" % code)
"""


def pages() -> Iterator[Path]:
    """Every page whose blocks are run."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def other_pages() -> Iterator[Path]:
    """Every page whose blocks are only read: they change the repository or its surroundings."""
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        yield ROOT / name
    for name in ("src", "examples", "clients", "benchmarks"):
        if (ROOT / name).is_dir():
            yield from (page for page in sorted((ROOT / name).rglob("*.md")) if "node_modules" not in page.parts)
