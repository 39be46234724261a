"""doctor: does all that flowbook rests on hold here? What is checked stands in engine/doctor; here is how it is shown on a terminal."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from flowbook.cli import FAILED, INTERRUPTED, SUCCEEDED, TERMINATED
from flowbook.cli.place import Place
from flowbook.cli.text import has_colours, styled
from flowbook.engine.doctor import machine, storage
from flowbook.engine.doctor.core import MARK, Check, Found, examine, summary
from flowbook.spec.amounts import counted

if TYPE_CHECKING:
    from flowbook.store.base import Store

WIDTH = 100  # at most: longer lines are hard to read
COLOURS = {"ok": "green", "warn": "yellow", "bad": "bold red"}


def doctor(place: Place, given: argparse.Namespace) -> int:
    """``doctor``: every finding as it is found. Exit code 1 if something is wrong (✗), 0 if not; what only deserves a look (!) is no error."""
    if given.rights:
        from flowbook.engine.doctor.rights import FILE

        print(FILE.read_text(), end="")
        return SUCCEEDED
    pod: list[str] = []  # what was told of the pod that is tried
    with _heeding_signals() as came:
        try:
            return _shown(place, given, pod)
        except KeyboardInterrupt:  # the pod has been removed on the way here
            what = "the pod that was tried is removed, and what it wrote" if pod else "nothing was started"
            print(f"{signal.Signals(came[0]).name if came else 'interrupted'}; {what}", file=sys.stderr)
            return TERMINATED if came else INTERRUPTED


@contextmanager
def _heeding_signals() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, so that no pod stays behind. Gives those that come."""
    came: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        came.append(number)
        signal.raise_signal(signal.SIGINT)  # where asyncio runs, it cancels in good order

    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, interrupt) for number in heeded}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job has not
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _shown(place: Place, given: argparse.Namespace, pod: list[str]) -> int:
    begun, told, part = time.perf_counter(), list[Found](), ""
    for found in examine(_checks(place, given, pod)):
        told.append(found)
        if given.json:
            print(json.dumps(found.to_json(), ensure_ascii=False), flush=True)
        elif not (given.quiet and found.state == "ok"):
            if found.part != part:
                part = found.part
                print(styled(part, "bold", has_colours(sys.stdout)))
            print("\n".join(_lines(found)), flush=True)
    if not given.json:
        print(summary(told, time.perf_counter() - begun))
    return FAILED if any(found.state == "bad" for found in told) else SUCCEEDED


def _checks(place: Place, given: argparse.Namespace, pod: list[str]) -> list[Check]:
    from flowbook.engine.doctor.cluster import Look, left_out, options_of

    options = options_of(given.withs)
    settings, store = place.settings, place.store
    found = [
        *machine.checks(settings.warnings),
        *storage.checks(store, settings.keep_runs, verify=given.verify),
        Check("engine", "what killed engines left", partial(_left_over, store)),
    ]
    why = left_out(settings, os.environ, asked=given.pod or bool(given.withs))
    if why is not None or settings.cluster is None:
        return [*found, Check("cluster", "the cluster", lambda: [why] if why is not None else [], None)]

    def say(line: str) -> None:
        pod.append(line)
        if not given.quiet:
            print(styled(f"  … {line}", "dim", has_colours(sys.stderr)), file=sys.stderr, flush=True)

    return [*found, *Look(store, settings.cluster, os.environ, options, say).checks(pod=given.pod)]


def _left_over(store: Store) -> Iterator[Found]:
    from flowbook.kernel.housekeeping import orphans

    left = orphans(store)
    if left:
        what = counted(len(left), "entry, file or folder", "entries, files and folders")
        yield Found("warn", f"killed engines left something: {what}", "`flowbook gc` removes it.")
    else:
        yield Found("ok", "no killed engine has left anything")


def _lines(found: Found) -> Iterator[str]:
    """The finding, what to do about it, and what is to be copied."""
    colours = has_colours(sys.stdout)
    width = min(shutil.get_terminal_size((80, 24)).columns, WIDTH)
    lines = _wrapped(found.text, width)
    yield f"{styled(MARK[found.state], COLOURS[found.state], colours)} {lines[0]}"
    yield from (f"  {line}" for line in lines[1:])
    yield from (f"    {line}" for line in _wrapped(found.remedy, width - 2))
    if found.paste:
        yield f"\n{found.paste}\n"


def _wrapped(text: str, width: int) -> list[str]:
    """A word that is longer than a line (an address, a path) stays whole."""
    return textwrap.wrap(text, width - 2, break_long_words=False, break_on_hyphens=False)
