"""The wheel, installed alone: the event library needs nothing but Pydantic, and says so where more is asked of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support import ROOT

UV = ROOT / ".venv" / ".uv" / "bin" / "uv"
LOCK = ROOT / "requirements" / "run.txt"
OPTIONAL = (
    "aio_pika", "alembic", "asyncpg", "celery", "click", "cryptography", "fastapi", "hiredis", "httpx2", "jinja2",
    "jwt", "prometheus_client", "redis", "rich", "sentry_sdk", "sqlalchemy", "starlette", "uvicorn", "uvloop",
    "websockets",
)  # fmt: skip

pytestmark = pytest.mark.slow


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A command as somebody else would type it: nothing of this environment but the paths of its tools."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL", "LIVETAPE"))}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=100, env=kept, **options
    )


def done(*command: object, **options: object) -> str:
    result = run(*command, **options)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    done(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and what it needs without extras, in the locked versions."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    done(UV, "venv", "--quiet", "--python", sys.executable, venv)
    wanted = venv.parent / "wanted.txt"
    wanted.write_text("\n".join(entry for name, entry in locked().items() if name in needed("livetape")))
    install = (UV, "pip", "install", "--quiet", "--python", venv / "bin" / "python")
    done(*install, "--require-hashes", "--only-binary", ":all:", "-r", wanted)
    done(*install, "--offline", "--no-deps", wheel)
    return venv


def locked() -> dict[str, str]:
    """The entries of the lock file by name."""
    entries = re.split(r"\n(?=\S)", LOCK.read_text().strip())
    return {entry.partition("==")[0]: entry for entry in entries}


def needed(name: str) -> set[str]:
    """What a package needs without extras, and what that needs."""
    found: set[str] = set()
    for requirement in map(Requirement, metadata.requires(name) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found |= {canonicalize_name(requirement.name)} | needed(requirement.name)
    return found


def names(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        yield from archive.namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    inside = set(names(wheel))
    assert {name.split("/")[0] for name in inside} == {"livetape", f"{wheel.name.rpartition('-py3')[0]}.dist-info"}
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "livetape").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in inside if name.startswith("livetape/")} == source
    assert "livetape/py.typed" in inside


def test_nothing_is_missing_and_nothing_is_too_much(installed: Path) -> None:
    done(UV, "pip", "check", "--quiet", "--python", installed / "bin" / "python")
    found = done(UV, "pip", "freeze", "--python", installed / "bin" / "python")
    have = {canonicalize_name(re.split(r"==| @ ", line)[0]) for line in found.splitlines()}
    assert have == needed("livetape") | {"livetape"}
    assert not have & set(OPTIONAL)


def test_every_public_name_is_imported_without_a_driver_or_a_framework(installed: Path, tmp_path: Path) -> None:
    script = tmp_path / "names.py"
    script.write_text(
        "import sys, livetape, livetape.events\n"
        "for module in (livetape, livetape.events):\n"
        "    for name in getattr(module, '__all__', ()):\n"
        "        getattr(module, name)\n"
        f"print(*sorted(set(sys.modules) & {set(OPTIONAL)!r}))\n"
    )
    assert done(installed / "bin" / "python", "-I", script, cwd=tmp_path).strip() == ""


def test_the_embedded_example_runs_twice(installed: Path, tmp_path: Path) -> None:
    example = shutil.copy(ROOT / "examples" / "events_embedded.py", tmp_path)
    first = done(installed / "bin" / "python", "-W", "error", example, cwd=tmp_path)
    second = done(installed / "bin" / "python", "-W", "error", example, cwd=tmp_path)
    assert first.splitlines() == [
        "published: step 1 as number 1",
        "published: step 2 as number 2",
        "published: step 3 as number 3",
        "heard: step 1",
        "heard: step 2",
        "heard: step 3",
        "on the tape: 1 task_started",
        "on the tape: 2 task_progress 50",
        "on the tape: 3 task_completed",
    ]
    assert "published: step 3 as number 6" in second
    assert "on the tape: 6 task_completed" in second


@pytest.mark.parametrize("arguments", [[], ["up"], ["--help"], ["tail", "x"]], ids=" ".join)
def test_the_command_says_what_to_install(installed: Path, tmp_path: Path, arguments: list[str]) -> None:
    for command in ([installed / "bin" / "livetape"], [installed / "bin" / "python", "-m", "livetape"]):
        result = run(*command, *arguments, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, "")
        assert 'pip install "livetape[platform]"' in result.stderr
        assert "Traceback" not in result.stderr


def test_the_command_knows_its_version(installed: Path, tmp_path: Path) -> None:
    assert (
        done(installed / "bin" / "livetape", "--version", cwd=tmp_path) == f"livetape {metadata.version('livetape')}\n"
    )


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        ("import livetape.events.open as o; o.open_backend('redis://localhost:1/0')", "pip install 'livetape[redis]'"),
        ("import livetape.events.open as o; o.open_client(object())", "pip install 'livetape[redis]'"),
    ],
)
def test_what_needs_a_driver_says_which(installed: Path, tmp_path: Path, call: str, remedy: str) -> None:
    code = f"import livetape\ntry:\n    {call}\nexcept livetape.LivetapeError as error:\n    print(error.fix)"
    assert done(installed / "bin" / "python", "-c", code, cwd=tmp_path).strip() == remedy
