"""The machine that runs the documentation fails when a page is wrong."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from docs.pages import (
    Block,
    Command,
    PageError,
    Runner,
    is_complete,
    matches,
    read_blocks,
    read_commands,
    starts_server,
)

SERVER = """\
# Stands for a server: `livetape up` answers /readyz, `livetape refuse` does not start.
import http.server, signal, sys, threading
arguments = sys.argv[1:]
if arguments[0] != "up":
    sys.exit(f"cannot {arguments[0]}")
if "--broken" in arguments:
    sys.exit("cannot start")
port = int(arguments[arguments.index("--port") + 1])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"you asked {self.headers['Host']} for {self.path}\\n".encode())
    def log_message(self, *arguments):
        pass
server = http.server.HTTPServer(("127.0.0.1", port), Answer)
code = 7 if "--untidy" in arguments else 0
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
print(f"serving at http://127.0.0.1:{port}/", flush=True)
print("more lines", flush=True)
server.serve_forever()
server.server_close()
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path: Path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "server.py").write_text(SERVER)
    (programs / "livetape").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{programs}/server.py" "$@"\n')
    (programs / "livetape").chmod(0o755)

    def run(text: str, timeout_s: float = 20) -> int:
        return Runner("page.md", tmp_path / "a page", timeout_s=timeout_s, path=programs).run(dedent(text))

    return run


def sh(text: str) -> list[Command]:
    return read_commands(Block(1, "sh", dedent(text)))


# ---- Reading ---------------------------------------------------------------------------------------------------------


def test_blocks_are_found_in_lists_too():
    text = "# Title\n\n```sh\ntrue\n```\n\n- item\n\n  ```json\n  {}\n  ```\n"
    assert read_blocks(text) == [Block(3, "sh", "true\n"), Block(9, "json", "{}\n")]


@pytest.mark.parametrize("text", ["```\nx\n```", "```bash\nx\n```", "~~~ shell\nx\n~~~", "text\n\n    indented code\n"])
def test_a_block_without_a_known_language_is_refused(text):
    with pytest.raises(PageError, match=r"page:\d+: "):
        read_blocks(text)


def test_prompts_separate_commands_from_their_output():
    assert sh("$ echo a\na\n\nb\n$ true\n$ false  # exit 1\n") == [
        Command(2, "echo a", "a\n\nb", 0),
        Command(6, "true", "", 0),
        Command(7, "false  # exit 1", "", 1),
    ]


def test_without_prompts_every_command_stands_alone_and_output_is_free():
    found = sh("# a remark\nfor i in 1 2; do\n  echo $i\ndone\n\ncat <<'E'\ntext\nE\necho a \\\n  b\n")
    assert [(command.line, command.text.splitlines()[0], command.expected) for command in found] == [
        (3, "for i in 1 2; do", None),
        (7, "cat <<'E'", None),
        (10, "echo a \\", None),
    ]


@pytest.mark.parametrize("text", ["output first\n$ true\n", "echo 'open\n", "if true; then\n"])
def test_blocks_that_make_no_sense_are_refused(text):
    with pytest.raises(PageError):
        sh(text)


@pytest.mark.parametrize(("text", "answer"), [("a | b", True), ("a |", False), ("a &&", False), ("echo 'a", False)])
def test_a_command_ends_where_bash_says(text, answer):
    assert is_complete(text) is answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("scripts/up", True),
        ("A=1 livetape up --data-dir d   # in another terminal", True),
        ("scripts/livetape up", True),
        ("livetape upload", False),
        ("livetape up  # exit 2", False),
        ("echo livetape up", False),
    ],
)
def test_what_starts_a_server(text, answer):
    assert starts_server(sh(text)[0]) is answer


# ---- Comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("a", "a\n"),
        ("a", "a   \n\n\n"),
        ("", ""),
        ("id ... done", "id 0190-77 done\n"),
        ("a\n...\nd", "a\nb\nc\nd\n"),
        ("a\n...\nd", "a\nd\n"),
        ("...", ""),
        ("a (x) [y]* $", "a (x) [y]* $\n"),
    ],
)
def test_output_that_fits(expected, output):
    assert matches(expected, output)


@pytest.mark.parametrize(
    ("expected", "output"),
    [
        ("a", "b\n"),
        ("a", "a\nb\n"),
        ("a", ""),
        ("", "a\n"),
        ("id ... done", "id 0190\n77 done\n"),
        ("a\n...\nd", "a\nb\n"),
        ("a.c", "abc\n"),
        ("a\n\nb", "a\nb\n"),
    ],
)
def test_output_that_does_not(expected, output):
    assert not matches(expected, output)


# ---- Running ---------------------------------------------------------------------------------------------------------


def test_a_page_is_run_in_order_with_one_shell(run):
    ran = run("""\
        ```sh
        mkdir folder
        cd folder
        NAME=world
        ```

        ```text
        never run
        ```

        ```sh
        $ echo "hello $NAME"; basename "$PWD"
        hello world
        folder
        $ (exit 3)  # exit 3
        $ ls ../scripts/setup
        ../scripts/setup
        ```
        """)
    assert ran == 2


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("$ echo a\nb\n", r"page.md:2: `echo a` did not say"),
        ("$ echo a\n", "did not say what the page says:\n    \\(nothing\\)"),
        ("true\nfalse\n", "page.md:3: `false` ended with exit code 1, the page says 0"),
        ("true  # exit 4\n", "ended with exit code 0, the page says 4"),
        ("(exit 3)  # exit 4\n", "ended with exit code 3, the page says 4"),
        ("echo $UNSET_NAME\n", "exit code 1"),
        ("false; true\n", "exit code 1"),
        ("exit 0\ntrue\n", "page.md:2: `exit 0` ended the shell"),
        ("no-such-program\n", r"exit code 127(.|\n)*no-such-program"),
        ("livetape run\n", r"exit code 1(.|\n)*cannot run"),
    ],
)
def test_a_command_that_breaks_its_promise_fails_the_page(run, block, message):
    with pytest.raises(PageError, match=message):
        run(f"```sh\n{block}```\n")


def test_a_command_that_does_not_end_fails_the_page(run):
    with pytest.raises(PageError, match="`sleep 60` did not end"):
        run("```sh\nsleep 60\n```\n", timeout_s=0.5)


def test_a_server_is_started_asked_and_stopped(run, tmp_path):
    run(
        """\
        ```sh
        $ livetape up
        serving at http://127.0.0.1:8420/
        ```

        In another terminal:

        ```sh
        $ curl -s http://localhost:8420/page
        you asked localhost:8420 for /page
        ```

        ```python
        import urllib.request
        assert b"/other" in urllib.request.urlopen("http://127.0.0.1:8420/other").read()
        ```

        ```sh
        livetape up --port 8421
        $ curl -s http://127.0.0.1:8421/
        ```
        """.replace("        livetape up --port", "        $ livetape up --port").replace(
            "8421/\n", "8421/\n        ...\n"
        )
    )
    assert sorted(file.read_text() for file in (tmp_path / "a page" / ".run").glob("*.ended")) == ["0\n", "0\n"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("livetape up --broken\n", r"`livetape up --broken` ended with exit code 1(.|\n)*cannot start"),
        ("$ livetape up\nserving at http://127.0.0.1:9/\n", "did not say"),
        ("livetape up --untidy\n", "asked to stop: exit code 7"),
        ("livetape up\nlivetape run\n", "page.md:3: "),
    ],
)
def test_a_server_that_breaks_its_promise_fails_the_page(run, block, message):
    with pytest.raises(PageError, match=message):
        run(f"```sh\n{block}```\n", timeout_s=3)


def test_no_server_is_left_when_a_page_fails(run, tmp_path):
    with pytest.raises(PageError):
        run("```sh\nlivetape up\nfalse\n```\n")
    output = "".join(file.read_text() for file in (tmp_path / "a page" / ".run").glob("*.out"))
    address = re.search(r"http://127.0.0.1:(\d+)/", output)
    assert address
    with pytest.raises(PageError, match="exit code 7"):  # curl: could not connect
        Runner("page.md", tmp_path / "second").run(f"```sh\ncurl -s {address[0]}\n```\n")


def test_python_blocks_share_a_module(run):
    run("""\
        ```python
        from dataclasses import dataclass

        @dataclass
        class Point:
            x: int
        ```

        ```python
        assert Point(3).x == 3
        ```
        """)


def test_python_that_fails_names_the_line_of_the_page(run):
    with pytest.raises(PageError, match=r'page.md:3: the python block failed(.|\n)*"page.md", line 5(.|\n)*Assertion'):
        run("text\n\n```python\nx = 1\nassert x == 2\n```\n")


def test_python_that_does_not_end_fails_the_page(run):
    with pytest.raises(PageError, match="did not end"):
        run("```python\nwhile True: pass\n```\n", timeout_s=0.5)


@pytest.mark.parametrize("block", ["```json\n{a: 1}\n```\n", "```toml\na = \n```\n"])
def test_data_must_parse(run, block):
    with pytest.raises(PageError, match=r"page.md:1: not (json|toml)"):
        run(block)


def test_data_that_parses(run):
    assert run('```json\n{"a": 1}\n```\n\n```toml\na = 1\n```\n') == 2


def test_a_page_does_not_see_the_settings_of_its_caller(run, monkeypatch):
    monkeypatch.setenv("LIVETAPE_URL", "http://elsewhere")
    run('```sh\n$ echo "${LIVETAPE_URL:-none}"\nnone\n```\n')
