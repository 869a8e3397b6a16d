"""The checks of `livetape doctor`. Each looks, changes nothing, and says what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from livetape.cli.discover import is_serving, read_server_file
from livetape.cli.facts import package_versions
from livetape.cli.ports import holder_of, is_in_use, problem_with
from livetape.errors import ConfigError, LivetapeError
from livetape.settings import Loaded, Settings
from livetape.settings.secret import MIN_SECRET_CHARS, SECRET_FILE

Status: TypeAlias = Literal["ok", "warn", "fail", "skip"]

MIN_PYTHON = 0x030B0000
MIN_FREE_BYTES = 100 * 1024 * 1024
MIN_OPEN_FILES = 1024
BUS_ANSWERS_S = 3.0
OLDEST_YEAR = 2026


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def all_checks(load: Callable[[], Loaded]) -> list[Check]:
    """Every check, in the order in which things depend on each other."""
    checks = [check_python(), check_packages(), check_clock(), check_open_files()]
    try:
        loaded = load()
    except ConfigError as exc:
        found = ": ".join(part for part in (exc.message, exc.because) if part)
        return [*checks, Check("settings", "fail", f"{found} ({exc.set_by})", exc.fix or "correct the setting")]
    settings = loaded.settings
    running = read_server_file(settings.server_file)
    url = running.url if running is not None and is_serving(running) else None
    return [
        *checks,
        *check_settings(loaded),
        check_data_dir(settings.data_dir),
        check_secret(settings),
        check_database(settings.database_path) if settings.postgres_url is None else check_postgres(settings),
        check_blobs(settings),
        check_files(settings),
        check_bus(settings),
        check_queue(settings),
        check_server(url, settings.server_file),
        check_port(settings, is_ours=url is not None),
        check_console(),
    ]


def check_python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.hexversion < MIN_PYTHON:
        return Check("python", "fail", found, "use Python 3.11 or newer")
    if sqlite3.sqlite_version_info < (3, 35):
        return Check("python", "fail", f"{found}, SQLite {sqlite3.sqlite_version}", "use a Python with SQLite >= 3.35")
    return Check("python", "ok", f"{found}, SQLite {sqlite3.sqlite_version}")


def check_packages() -> Check:
    versions = package_versions()
    missing = [name for name, version in versions.items() if version is None and name != "uvloop"]
    if missing:
        return Check("packages", "fail", f"not installed: {', '.join(missing)}", 'pip install "livetape[platform]"')
    return Check("packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items() if version))


def check_clock() -> Check:
    now = time.gmtime()
    found = f"{time.strftime('%Y-%m-%d %H:%M:%S', now)} UTC"
    if not OLDEST_YEAR <= now.tm_year < 2100:
        return Check("clock", "fail", found, "set the clock of this machine: tokens and time-outs depend on it")
    return Check("clock", "ok", found)


def check_open_files() -> Check:
    try:
        import resource
    except ImportError:
        return Check("open files", "skip", "no such limit on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (may be raised to {hard})" if hard != resource.RLIM_INFINITY else str(soft)
    if 0 <= soft < MIN_OPEN_FILES:
        return Check("open files", "warn", found, f"every socket needs one: ulimit -n {MIN_OPEN_FILES * 16}")
    return Check("open files", "ok", found)


def check_settings(loaded: Loaded) -> Iterator[Check]:
    count = len(loaded.sources)
    yield Check("settings", "ok", f"valid, {count} set" if count else "valid, everything at its default")
    for warning in loaded.warnings:
        yield Check("settings", "warn", warning, "correct or remove it; livetape config show --show-sources")


def check_data_dir(data_dir: Path) -> Check:
    if not data_dir.exists():
        parent = next(folder for folder in data_dir.parents if folder.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Check("data folder", "ok", f"{data_dir} (not there yet; livetape up makes it)")
        return Check("data folder", "fail", f"{parent} is not writable", "choose another with --data-dir")
    if not data_dir.is_dir() or not os.access(data_dir, os.W_OK | os.X_OK):
        remedy = f"make it a folder that user {os.getuid()} may write, or choose another with --data-dir"
        return Check("data folder", "fail", f"{data_dir} is not writable", remedy)
    free = shutil.disk_usage(data_dir).free
    found = f"{data_dir}, {free / 2**30:.1f} GiB free"
    if free < MIN_FREE_BYTES:
        return Check("data folder", "fail", found, "make room: events cannot be written on a full disk")
    return Check("data folder", "ok", found)


def check_secret(settings: Settings) -> Check:
    if settings.jwt_verify_key is not None:
        return Check("token key", "ok", "set in the settings")
    path = settings.data_dir / SECRET_FILE
    if not path.exists():
        return Check("token key", "skip", f"{path} is made on first use")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        length = len(path.read_text("ascii").strip())
    except (OSError, UnicodeDecodeError) as exc:
        return Check("token key", "fail", str(exc), f"make {path} readable for this user")
    if mode & 0o077:
        remedy = f"chmod 600 {path}; if others could read it, remove it: tokens made before are then refused"
        return Check("token key", "fail", f"{path} has mode {mode:04o}", remedy)
    if length < MIN_SECRET_CHARS:
        return Check("token key", "fail", f"{path} holds {length} characters", f"remove {path}: a new one is made")
    return Check("token key", "ok", f"{path}, mode {mode:04o}")


def check_database(path: Path) -> Check:
    if not path.exists():
        return Check("database", "skip", f"{path} is made on first start")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=2.0)) as database:
            problems = [str(row[0]) for row in database.execute("PRAGMA quick_check(5)")]
            journal = database.execute("PRAGMA journal_mode").fetchone()[0]
    except sqlite3.OperationalError as exc:
        if "locked" in str(exc) or "busy" in str(exc):
            return Check("database", "skip", f"{path} is busy", "try again when less is written")
        return Check("database", "fail", f"{path}: {exc}", _restore(path))
    except sqlite3.DatabaseError as exc:
        return Check("database", "fail", f"{path}: {exc}", _restore(path))
    if problems != ["ok"]:
        return Check("database", "fail", f"{path}: {'; '.join(problems)}", _restore(path))
    return Check("database", "ok", f"{path}, {path.stat().st_size / 2**20:.1f} MiB, journal {journal}, sound")


def check_postgres(settings: Settings) -> Check:
    """Whether the server answers, and whether its tables are those of this version."""
    import asyncio

    from livetape.errors import StoreError
    from livetape.runtime.maintenance import database_report, without_password

    place = without_password(str(settings.postgres_url))
    try:
        report = asyncio.run(database_report(settings))
    except StoreError as exc:
        return Check("database", "fail", f"{place}: {exc}", "start it, or correct LIVETAPE_DATABASE")
    except ModuleNotFoundError as exc:
        return Check("database", "fail", f"{place}: {exc}", 'pip install "livetape[postgres]"')
    found = f"{place}, {report.server}, {report.size / 2**20:.1f} MiB, revision {report.revision or '-'}"
    if report.state in ("behind", "newer"):
        remedy = "livetape db upgrade" if report.state == "behind" else "use the version that made it, or a newer one"
        return Check("database", "fail", found, remedy)
    return Check("database", "ok", found)


def check_blobs(settings: Settings) -> Check:
    """Whether large values can be kept, where all processes find them."""
    is_set = settings.blobs is not None
    return _check_shared_folder("large values", settings, settings.blobs_dir, "blobs", is_set=is_set)


def check_files(settings: Settings) -> Check:
    """Whether the files of executions can be kept, where all processes find them."""
    return _check_shared_folder("files", settings, settings.files_dir, "files", is_set=settings.files is not None)


def _check_shared_folder(name: str, settings: Settings, folder: Path, setting: str, *, is_set: bool) -> Check:
    variable = f"LIVETAPE_{setting.upper()}"
    if not folder.exists():
        parent = next(one for one in folder.absolute().parents if one.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return Check(name, "fail", f"{parent} is not writable", f"set {variable}=file:///another/folder")
        found = f"{folder} (not there yet; made at the first start)"
    elif not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        remedy = f"make it a folder that user {os.getuid()} may write, or set {variable}=file:///another/folder"
        return Check(name, "fail", f"{folder} is not writable", remedy)
    else:
        found = str(folder)
    if settings.postgres_url is not None and not is_set:
        remedy = f"set {variable}=file:///folder to one that all workers and servers have"
        return Check(name, "warn", f"{found}, in the data folder of this process", remedy)
    return Check(name, "ok", found)


def check_bus(settings: Settings) -> Check:
    """Whether Redis answers, where there has to be one."""
    if not settings.is_distributed:
        return Check("bus", "ok", "inside the process")
    import asyncio

    from livetape.cli.running import shown_url
    from livetape.events.open import open_backend

    async def ask(url: str) -> None:
        async with asyncio.timeout(BUS_ANSWERS_S), open_backend(url) as backend:
            assert backend.log is not None
            await backend.log.read("livetape doctor", limit=1)

    urls = dict.fromkeys([settings.bus_url, str(settings.log_url)])
    shown = ", ".join(shown_url(url) for url in urls)
    for url in urls:
        try:
            asyncio.run(ask(url))
        except (LivetapeError, TimeoutError) as exc:
            why = str(exc) or f"no answer in {BUS_ANSWERS_S:g} s"
            return Check("bus", "fail", f"{shown_url(url)}: {why}", "start it, or correct LIVETAPE_BUS")
    return Check("bus", "ok", f"{shown} answers")


def check_queue(settings: Settings) -> Check:
    """Whether RabbitMQ answers, where doorbells go over it."""
    url = settings.broker_url
    if url is None:
        return Check("queue", "ok", "in the database")
    import asyncio

    from livetape.cli.running import shown_url
    from livetape.runtime.queue_ports import broker_report

    try:
        broker = asyncio.run(broker_report(url, within_s=BUS_ANSWERS_S))
    except ConfigError as exc:
        return Check("queue", "fail", f"{shown_url(url)}: {exc.because or exc}", exc.fix or "correct LIVETAPE_QUEUE")
    except LivetapeError as exc:
        return Check("queue", "fail", f"{shown_url(url)}: {exc}", "start it, or correct LIVETAPE_QUEUE")
    return Check("queue", "ok", f"{shown_url(url)}, {broker}")


def _restore(path: Path) -> str:
    return f"stop livetape, keep a copy of {path}, then restore it from a backup, or move it away to start empty"


def check_server(url: str | None, file: Path) -> Check:
    if url is None:
        return Check("server", "skip", f"none runs on this data folder ({file.name} names none that answers)")
    try:
        with build_opener(ProxyHandler({})).open(f"{url}/readyz", timeout=5.0) as response:
            status = response.status
    except (URLError, OSError, ValueError) as exc:
        return Check("server", "fail", f"{url}/readyz: {exc}", "see the server's log; it may still be starting")
    return Check("server", "ok", f"{url} is ready (HTTP {status})")


def check_port(settings: Settings, *, is_ours: bool) -> Check:
    name = f"port {settings.port}"
    problem = problem_with(settings.host, settings.port)
    if problem is None:
        return Check(name, "ok", f"free on {settings.host}")
    if not is_in_use(problem):
        return Check(name, "fail", f"{settings.host}: {problem.strerror or problem}", "choose another --host or --port")
    holder = holder_of(settings.port)
    if is_ours and holder is not None and holder.pid == getattr(read_server_file(settings.server_file), "pid", None):
        return Check(name, "ok", "this data folder's server listens there")
    found = f"taken by {holder}" if holder else "taken by another process"
    return Check(name, "warn", found, "livetape up --port with another number")


def check_console() -> Check:
    import livetape.console

    folder = Path(livetape.console.__file__).parent
    pages = sorted(folder.rglob("*.html"))
    if not pages:
        return Check("console", "fail", f"no page in {folder}", "install livetape anew")
    return Check("console", "ok", f"{len(pages)} page{'s' if len(pages) > 1 else ''} in {folder}")
