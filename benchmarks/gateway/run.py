"""Figures of the gateway: scripts/bench-gateway [--quick] [--gate] [--only SERVERS] [--scenarios NAMES] [--out FILE].

Each server has the first processor for itself; the load client, which also publishes, and Redis have the second. The
figure is what the server spends: processor seconds for a million deliveries, as a ratio to the C limit of the same
run (c/limit.c), and to the seed's architecture (reference.py). Wall-clock rates move with the machine and are for
orientation. Medians; the servers take turns (of half a second where events follow each other without a pause:
turns.py), ratios are those of turns that followed each other, and one during which the host stole more than 3 % does
not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine
from events import USUAL_BYTES, payload
from load import BUILD, Dialogue, NoFiguresError, allow_many_files, load
from peers import NODE_PACKAGES, PEERS, PYTHON_PACKAGES
from targets import TARGETS, Livetape, Target, UnavailableError
from turns import Figures, Seat, side_by_side

MAX_TRIES = 5
TURN_S, TURN_WARMUP_S = 0.5, 0.1
PACKAGES = ["fastapi", "hiredis", "httptools", "pydantic", "redis", "starlette", "uvicorn", "uvloop", "websockets"]
ALL = TARGETS | PEERS


@dataclass(frozen=True)
class Scenario:
    """What happens, and the figure that counts. `goals` are ratios of ours to the limit and to the reference."""

    name: str
    about: str
    sockets: int
    measure: Callable[[Scenario, Target, Path, Run], Figures]
    figure: str = "cpu_s_per_1m"
    channels: int = 1
    window: int = 0
    rate: float = 0
    bytes: int = USUAL_BYTES
    goals: str = ""
    times: int = 1
    """So many times the usual length."""
    only: tuple[str, ...] = ()
    """Some of the servers; empty: all."""
    gate: float | None = None
    """With --gate, ours costs at most so many times the limit."""


@dataclass(frozen=True)
class Run:
    """How long one measurement takes."""

    warmup: float
    seconds: float
    nice: int


# ---- what is measured -----------------------------------------------------------------------------------------------


def fan_out(scenario: Scenario, target: Target, folder: Path, run: Run, *, stalled: int = 0) -> Figures:
    """Publish and count."""
    with seated(scenario, target, folder, run, stalled=stalled) as seat:
        return seat.measure()


@contextmanager
def seated(scenario: Scenario, target: Target, folder: Path, run: Run, *, stalled: int = 0) -> Iterator[Seat]:
    """The server with all its sockets, ready to be measured."""
    sockets, channels = scenario.sockets, scenario.channels
    target.start(folder, channels)
    options: dict[str, float] = {
        "sockets": sockets,
        "channels": channels,
        "warmup": run.warmup,
        "seconds": run.seconds * scenario.times,
        "pid": target.pid,
        "stalled": stalled,
    }
    options |= {"rate": scenario.rate} if scenario.rate else {"window": scenario.window}
    publishing = target.publishing(payload(scenario.bytes))
    with load(folder / "load", target.dialogue(sockets, channels), publishing, nice=run.nice, **options) as ready:
        yield Seat(target, ready, None if stalled else sockets)


def idle(scenario: Scenario, target: Target, folder: Path, run: Run) -> Figures:
    """Memory of a fresh server that grew with its connected, subscribed, silent sockets."""
    sockets, channels = scenario.sockets, scenario.channels
    target.start(folder, channels)
    before = settled_kib(target)
    with load(folder / "load", target.dialogue(sockets, channels), None, sockets=sockets, channels=channels) as ready:
        after = settled_kib(target)
        target.check(sockets, {})
    return {"kib_per_socket": (after - before) / sockets, "rss_mib": after / 1024, **ready.ready}


def settled_kib(target: Target) -> int:
    """Its memory when it has not grown for a second: a server listens before it has loaded everything."""
    while True:
        before = target.rss_kib()
        time.sleep(1)
        if target.rss_kib() <= before:
            return target.rss_kib()


def resume(scenario: Scenario, target: Target, folder: Path, run: Run) -> Figures:
    """All sockets come at once, each with a position in the middle of its tape, until each has seen the rest."""
    sockets, channels, events = scenario.sockets, scenario.channels, 100
    target.start(folder, channels)
    dialogue: Dialogue
    reads: dict[str, int] = {}
    expected = 0
    if isinstance(target, Livetape):
        asyncio.run(target.record(payload(), channels, events))
        dialogue = target.dialogue(sockets, channels, {"epoch": target.epoch, "offset": events // 2})
        expected = sockets * (events - events // 2)
        reads = calls(target)
    else:
        dialogue = target.dialogue(sockets, channels)
    with load(
        folder / "load", dialogue, None, nice=run.nice, sockets=sockets, channels=channels, at_once=sockets, patience=45
    ) as ready:
        if ready.ready["deliveries"] != expected:
            raise NoFiguresError(f"{ready.ready['deliveries']} events were replayed, not {expected}")
        target.check(sockets, {})
        if isinstance(target, Livetape):
            reads = {name: count - reads.get(name, 0) for name, count in calls(target).items()}
    return {**ready.ready, "redis_calls": {name: count for name, count in reads.items() if count}}


def calls(target: Livetape) -> dict[str, int]:
    """How often Redis was asked what."""
    assert target.redis is not None
    lines = target.redis.cli("INFO", "commandstats").splitlines()
    stats = [line.strip().removeprefix("cmdstat_").partition(":calls=") for line in lines if ":calls=" in line]
    return {name: int(rest.partition(",")[0]) for name, _, rest in stats}


def stalled(scenario: Scenario, target: Target, folder: Path, run: Run) -> Figures:
    """The others' p99 while one socket does not read, against the p99 without it."""
    without = fan_out(scenario, target, folder / "without", run)
    target.stop()
    again = ALL[target.name]()
    again.nice = target.nice
    try:
        with_one = fan_out(scenario, again, folder / "with", run, stalled=1)
    except NoFiguresError as failure:
        raise NoFiguresError(f"{failure}\n{again.tail()}".strip()) from None
    finally:
        again.stop()
    return {
        "p99_ratio": with_one["p99_us"] / max(1, without["p99_us"]),
        "p99_us": with_one["p99_us"],
        "p99_us_without": without["p99_us"],
        "lost": with_one["lost"],
        "silent": with_one["silent"],
    }


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("fan1000", "1 channel, 1,000 sockets, 1 event on the way", 1000, fan_out, window=1,
                 goals="<= 1.4x limit (gate 1.6x), <= 0.45x reference", gate=1.6),
        Scenario("burst", "1 channel, 1,000 sockets, 16 events on the way", 1000, fan_out, window=16,
                 goals="<= 0.2x unbatched limit"),
        Scenario("many1000", "1,000 channels of 1 socket, 256 events on the way", 1000, fan_out, channels=1000,
                 window=256, goals="<= 2.0x limit (gate 2.3x), <= 0.1x reference", gate=2.3),
        Scenario("lat1000", "1 channel, 1,000 sockets, 10 events/s", 1000, fan_out, "p99_us", rate=10,
                 goals="p50 and p99 <= 1.4x limit"),
        Scenario("latmany", "1,000 channels of 1 socket, 2,000 events/s", 1000, fan_out, "p50_us", channels=1000,
                 rate=2000, goals="p50 <= 1.8x limit"),
        Scenario("idle", "memory of 1,000 silent sockets on 1,000 channels", 1000, idle, "kib_per_socket",
                 channels=1000, goals="<= 20 KiB a socket"),
        Scenario("resume", "5,000 sockets come back at once, 50 events behind each, 50 channels", 5000, resume,
                 "connect_seconds", channels=50, goals="<= 5 s, one log read a channel",
                 only=("limit", "reference", "livetape")),
        Scenario("stalled", "1 of 200 sockets does not read, 40 events/s of 16 KB", 200, stalled, "p99_ratio", rate=100,
                 bytes=8192, goals="<= 1.2", only=("reference", "livetape", "livetape-direct")),
    )
}  # fmt: skip


# ---- runs -----------------------------------------------------------------------------------------------------------


class Bench:
    def __init__(self, folder: Path, names: list[str], run: Run) -> None:
        self.folder = folder
        self.run = run
        self.names: list[str] = []
        self.skipped: dict[str, str] = {}
        self._count = 0
        for name in names:
            try:
                target = ALL[name]()
                target.prepare()
                self.names.append(name)
            except UnavailableError as reason:
                self.skipped[name] = str(reason)
                print(f"{name} is skipped: {reason}", flush=True)

    def once(self, scenario: Scenario, name: str) -> Figures:
        self._count += 1
        target = ALL[name]()
        target.nice = self.run.nice
        try:
            return scenario.measure(scenario, target, self.folder / f"{self._count}-{name}", self.run)
        except NoFiguresError as failure:
            raise NoFiguresError(f"{failure}\n{target.tail()}".strip()) from None
        finally:
            target.stop()

    def quiet(self, scenario: Scenario, name: str) -> Figures:
        """A run during which the host did not steal; after some tries the quietest."""
        tries: list[Figures] = []
        while True:
            before = machine.cpu_times()
            figures = self.once(scenario, name)
            figures["steal_percent"] = machine.steal_percent(before, machine.cpu_times())
            tries.append(figures)
            if figures["steal_percent"] <= machine.MAX_STEAL_PERCENT:
                return figures
            if len(tries) == MAX_TRIES:
                quietest = min(tries, key=lambda one: float(one["steal_percent"]))
                return {**quietest, "noisy": True}

    def scenario(self, scenario: Scenario, runs: int) -> dict[str, Any]:
        measured: dict[str, list[Figures]] = {name: [] for name in self.names if name in (scenario.only or self.names)}
        failed: dict[str, str] = {}
        for _ in range(runs):
            (self.turns if scenario.window else self.one_by_one)(scenario, measured, failed)
        medians = {name: summary(of) for name, of in measured.items() if of and name not in failed}
        for base in ("limit", "reference"):
            if base in medians:
                for name, figures in medians.items():
                    figures[f"of_{base}"] = ratio(scenario.figure, measured[name], measured[base])
        return {
            "about": scenario.about,
            "figure": scenario.figure,
            "goals": scenario.goals,
            "medians": medians,
            "failed": failed,
            "runs": {name: [round(run[scenario.figure], 4) for run in of] for name, of in measured.items()},
        }

    def one_by_one(self, scenario: Scenario, measured: dict[str, list[Figures]], failed: dict[str, str]) -> None:
        for name, so_far in measured.items():
            if name not in failed:
                try:
                    so_far.append(self.quiet(scenario, name))
                except NoFiguresError as failure:
                    self.fails(scenario, name, failure, failed)

    def turns(self, scenario: Scenario, measured: dict[str, list[Figures]], failed: dict[str, str]) -> None:
        """All of them at once, each measured every few seconds."""
        run = replace(self.run, warmup=TURN_WARMUP_S, seconds=TURN_S)
        with ExitStack() as stack:
            seats: dict[str, Seat] = {}
            for name in measured:
                if name in failed:
                    continue
                self._count += 1
                target = ALL[name]()
                target.nice = self.run.nice
                stack.callback(target.stop)
                try:
                    folder = self.folder / f"{self._count}-{name}"
                    seats[name] = stack.enter_context(seated(scenario, target, folder, run))
                except NoFiguresError as failure:
                    self.fails(scenario, name, NoFiguresError(f"{failure}\n{target.tail()}".strip()), failed)
            for name, figures in side_by_side(seats, round(self.run.seconds / TURN_S)):
                if isinstance(figures, NoFiguresError):
                    self.fails(scenario, name, figures, failed)
                else:
                    measured[name].append(figures)

    def fails(self, scenario: Scenario, name: str, failure: NoFiguresError, failed: dict[str, str]) -> None:
        failed[name] = str(failure)
        print(f"{scenario.name} {name} FAILED: {failure}", flush=True)


def summary(runs: list[Figures]) -> Figures:
    figures: Figures = {}
    for name, value in runs[0].items():
        if isinstance(value, bool):
            figures[name] = any(run.get(name) for run in runs)
        elif isinstance(value, int | float):
            figures[name] = round(statistics.median(run[name] for run in runs), 4)
        else:
            figures[name] = value
    figures["noisy"] = sum(run.get("noisy", False) for run in runs) * 10 > len(runs)
    return figures


def ratio(figure: str, ours: list[Figures], base: list[Figures]) -> float | None:
    """The median of the ratios of runs that followed each other: the host changes its speed from minute to minute."""
    ratios = [one[figure] / other[figure] for one, other in zip(ours, base, strict=True) if other[figure]]
    return round(statistics.median(ratios), 3) if ratios else None


def table(name: str, result: dict[str, Any]) -> str:
    columns = [result["figure"]]
    columns += ["p50_us", "p99_us", "deliveries_per_s", "server_core", "client_core", "of_limit", "of_reference"]
    columns = list(dict.fromkeys(columns))
    medians: dict[str, Figures] = result["medians"]
    columns = [column for column in columns if any(column in figures for figures in medians.values())]
    lines = [f"{name}: {result['about']}; goal {result['goals']}"]
    lines.append(f"  {'':<16}" + "".join(f"{column:>18}" for column in columns))
    for target, figures in medians.items():
        cells = [f"{figures[column]:>18,.2f}" if figures.get(column) is not None else f"{'':>18}" for column in columns]
        notes = f"  {figures['redis_calls']}" if figures.get("redis_calls") else ""
        lines.append(f"  {target:<16}{''.join(cells)}{'  noisy' if figures['noisy'] else ''}{notes}")
    return "\n".join(lines)


def build_tools() -> None:
    """The C tools, again when a source is newer."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("limit", "load"):
        source, program = Path(__file__).parent / "c" / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench-gateway", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one run of a second each: to see that it works")
    parser.add_argument("--only", default="", help=f"some of {', '.join(ALL)}; the peers only when named, or all")
    parser.add_argument("--scenarios", default="", help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument("--runs", type=int, default=None, help="runs of each; default 3")
    parser.add_argument("--seconds", type=float, default=None, help="of one measurement; default 4")
    parser.add_argument("--livetape", default=None, help="the command of our server, with {port}, {bus} and {key}")
    parser.add_argument("--gate", action="store_true", help="fail when ours costs more than the gates of the scenarios")
    parser.add_argument("--out", type=Path, default=None, help="write the figures as JSON to this file")
    args = parser.parse_args()
    names = list(ALL) if args.only == "all" else args.only.split(",") if args.only else list(TARGETS)
    scenarios = args.scenarios.split(",") if args.scenarios else list(SCENARIOS)
    unknown = [name for name in names if name not in ALL] + [name for name in scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    if args.livetape:
        Livetape.command = args.livetape
    seconds = args.seconds or (1.0 if args.quick else 4.0)
    run = Run(0.3 if args.quick else 1.0, seconds, 0 if args.quick else -15)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    allow_many_files()
    build_tools()
    before = machine.cpu_times()
    result: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.facts(),
        "versions": {name: version(name) for name in PACKAGES},
        "peers": [*PYTHON_PACKAGES, *NODE_PACKAGES],
        "seconds": run.seconds,
    }
    with tempfile.TemporaryDirectory(prefix="livetape-bench-") as folder:
        bench = Bench(Path(folder), names, run)
        result["skipped"] = bench.skipped
        for name in scenarios:
            result[name] = bench.scenario(SCENARIOS[name], args.runs or (1 if args.quick else 3))
            print(table(name, result[name]), flush=True)
    result["steal_percent_in_all"] = round(machine.steal_percent(before, machine.cpu_times()), 2)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {args.out}", file=sys.stderr)
    if args.gate and sum(beyond(SCENARIOS[name], result[name]) for name in scenarios):
        return 1
    return 1 if any(result[name]["failed"] for name in scenarios) else 0


def beyond(scenario: Scenario, result: dict[str, Any]) -> bool:
    """Whether ours is beyond the gate of the scenario, or was not measured beside the limit; says so."""
    if scenario.gate is None:
        return False
    ratio = result["medians"].get("livetape", {}).get("of_limit")
    if ratio is not None and ratio <= scenario.gate:
        return False
    print(f"{scenario.name}: {ratio} times the limit, the gate is {scenario.gate}", file=sys.stderr)
    return True


if __name__ == "__main__":
    sys.exit(main())
