"""Measure flowbook, beside peers and what the machine itself can do: ``python benchmarks/run.py [NAME …] [--rounds 7] [--write]``.

docs/speed.md says what is measured and how to read the tables. The report goes to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
if not __package__:  # started as a file: the modules here are called benchmarks.NAME all the same
    sys.path[0] = str(ROOT)

from benchmarks.measure import Settings, report  # noqa: E402
from flowbook import __version__  # noqa: E402

NAMES = ("imports", "latency", "foreach", "stall", "artifact", "checkpoint", "flowspec", "cards", "s3", "pods", "machine")
RESULTS = ROOT / "benchmarks" / "results.md"


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """Exits with 2, saying why, for anything that is not asked for rightly."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Measure flowbook beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each measurement, after one that is thrown away (default: 7)")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full counts and sizes, to try it quickly (default: 1)")
    parser.add_argument("--no-peers", action="store_true", help="flowbook alone: nothing is installed")
    parser.add_argument("--write", action="store_true", help=f"write the report to {RESULTS.relative_to(ROOT)}, too")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if given.rounds < 1:
        parser.error(f"--rounds is 1 or more, not {given.rounds}")
    if not 0 < given.scale <= 1:
        parser.error(f"--scale is above 0 and at most 1, not {given.scale:g}")
    if given.write and (given.names or given.scale != 1 or given.no_peers):
        parser.error("--write is for a whole report: all names, full size, with peers")
    return given


def heading(settings: Settings, started_at: float, seconds: float) -> str:
    """What a reader must know of the machine and the day."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    day = datetime.datetime.fromtimestamp(started_at, datetime.UTC).strftime("%Y-%m-%d")
    return "\n".join(
        [
            "# Figures",
            "",
            f"{day}, flowbook {__version__}, Python {platform.python_version()}, {platform.system()} on {platform.machine()}, {cores} cores, "
            f"load {load:.1f} at the end; {settings.rounds} rounds{f', scale {settings.scale:g}' if settings.scale != 1 else ''}, "
            f"{seconds / 60:.0f} minutes. `make bench` makes this anew; docs/speed.md says how to read it.",
            "",
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    given = read_arguments(arguments)
    settings = Settings(given.rounds, given.scale, not given.no_peers)
    started_at, sections = time.time(), []
    for name in given.names or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        sections.append(importlib.import_module(f"benchmarks.{name}").run(settings))
    text = heading(settings, started_at, time.time() - started_at) + report(sections)
    print(text)
    if given.write:
        RESULTS.write_text(text.rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
