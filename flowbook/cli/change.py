"""Commands that write into the store, or a file: tag, stop, gc, export."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from flowbook.cli import FAILED, SUCCEEDED
from flowbook.cli.place import Place
from flowbook.errors import DefinitionError, Finding, FlowbookError


def tag(place: Place, given: argparse.Namespace) -> int:
    """``tag add|remove|replace|list``, of one run."""
    from flowbook.store import tags

    flow = place.known_flow(None)
    ids = place.runs(flow)
    if not ids:
        raise DefinitionError(Finding("tag", f"{flow} has no run yet", f"`{place.spell('run')}` starts one."))
    run = place.known_run(flow, given.run) if given.run else ids[-1]
    if given.action == "list":
        found = tags.read(place.store, flow, run, tags.begun_with(place.store, flow, run))[0]
    elif given.action == "replace":
        old, new = given.tags
        found = tags.change(place.store, flow, run, add=[new], remove=[old], strict=True)
    else:
        add = given.tags if given.action == "add" else ()
        remove = given.tags if given.action == "remove" else ()
        found = tags.change(place.store, flow, run, add=add, remove=remove, strict=True)
    print(f"run {run} of {flow}: {', '.join(found) or 'no tags'}")
    return SUCCEEDED


def gc(place: Place, given: argparse.Namespace) -> int:
    """``gc``: what is kept is decided in store/garbage.py."""
    from flowbook.engine.launch.sweep import swept
    from flowbook.kernel.housekeeping import orphans, remove, told
    from flowbook.store import garbage

    if given.keep is not None and given.keep < 0:
        raise DefinitionError(Finding("gc", f"--keep {given.keep} cannot be", "It is the number of runs that are kept; 0 keeps all."))
    flow = None if given.all_flows or place.cls is None else place.known_flow(None)
    begun = time.perf_counter()
    keep = place.settings.keep_runs if given.keep is None else given.keep
    report = garbage.collect(place.store, keep, flow, dry_run=given.dry_run, spare_young=given.keep is None)
    left = orphans(place.store)
    left_bytes = sum(remove(orphan, dry_run=given.dry_run) for orphan in left)
    lines = told(report, left, left_bytes, time.perf_counter() - begun)
    swept_lines = swept(place.store, place.settings.cluster, place.driven(), "resume --origin-run-id RUN", dry_run=given.dry_run)
    print("\n".join([*lines, *swept_lines]))
    return FAILED if report.troubles else SUCCEEDED


def stop(place: Place, given: argparse.Namespace) -> int:
    """``stop [RUN]``: a run that is driven is asked to stop; one that was left open is closed, and its pods with it."""
    from flowbook.cli import leftover
    from flowbook.store import garbage, layout

    path = place.path(given.path, ("RUN",))
    if not garbage.is_open(place.store, path.flow, path.run):
        print(f"run {path.run} of {path.flow} has already ended")
    elif (path.flow, path.run) in place.driven():
        request = json.dumps({"ask": "stop", "step": None, "index": None}).encode()
        place.store.create(layout.request(path.flow, path.run, f"stop-{time.time_ns()}"), request)
        print(f"run {path.run} of {path.flow}: asked to stop")
    else:
        leftover.stop(place, place.spec(path.flow, path.run))
        print(f"run {path.run} of {path.flow} was stopped; what had succeeded is kept")
    return SUCCEEDED


def export(place: Place, given: argparse.Namespace) -> int:
    """``export NOTEBOOK.ipynb [FLOW.py]``: the class that is equal to the notebook's step cells."""
    from flowbook.kernel import exporting

    notebook = Path(given.notebook)
    if not notebook.is_file():
        raise DefinitionError(Finding(given.notebook, "there is no such file", "Name a notebook, such as train.ipynb."))
    out = Path(given.out) if given.out else notebook.with_suffix(".py")
    try:
        told = exporting.export_notebook(notebook, out, check=given.check)
    except DefinitionError:
        raise
    except FlowbookError as error:
        print(error)
        return FAILED
    print("\n".join(told))
    return SUCCEEDED
