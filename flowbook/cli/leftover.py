"""A run that was left open by an engine that is gone, while its pods go on: what `resume` of it does.

A resume that would do the same takes the run itself over (cli/run.py), with the pods that it has. One that would not begins a new run;
what still runs of the old one is then stopped before, so that no step does its work twice. Runs on this machine died with their engine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowbook.cli.place import Place
from flowbook.engine.launch.placing import with_kubernetes
from flowbook.engine.launch.podspec import in_cluster
from flowbook.engine.scheduler import Machine, Run
from flowbook.engine.scheduler import Place as Surroundings
from flowbook.errors import DefinitionError, Finding
from flowbook.spec.amounts import counted
from flowbook.spec.flow import Spec, Step
from flowbook.store import garbage


def must_not_run(place: Place, flow: str, run: str) -> None:
    """Raises DefinitionError for a run that a process of this machine drives: to resume it would be to do the same twice."""
    if (flow, run) in place.driven():
        how = f"Wait for its end, or stop it (Ctrl-C where it was started). `{place.spell('run')}` starts another run."
        raise DefinitionError(Finding("resume", f"run {run} of {flow} is running, in another process of this machine", how))


def left_open(place: Place, origin: Spec) -> bool:
    """Whether this run may have pods in a cluster that nobody follows."""
    if place.settings.cluster is None or not any(in_cluster(step.options) for step in origin.steps):
        return False
    return garbage.is_open(place.store, origin.flow, origin.run) and (origin.flow, origin.run) not in place.driven()


def changed(spec: Spec, origin: Spec, given: argparse.Namespace) -> str | None:
    """Why `spec`, as it was asked for, is not the same work as `origin`; None if it is."""
    from flowbook.build import same_work

    if given.step:
        return f"step {given.step} is to run again"
    if given.params and spec.params != origin.params:
        return "its parameters were changed"
    if given.max_workers and given.max_workers != origin.max_parallel:
        return "--max-workers was changed"
    before = {step.name: step for step in origin.steps}
    alike = dataclasses.replace(spec, steps=tuple(_where_it_ran(step, before.get(step.name)) for step in spec.steps))
    return None if same_work(alike, origin) else "the flow, or what it was started with, has changed"


def _where_it_ran(step: Step, before: Step | None) -> Step:
    """The step with the arguments of --with kubernetes with which it was started, unless others are given."""
    arguments = dict(before.options.extra).get("kubernetes") if before is not None else None
    return step if arguments is None else dataclasses.replace(step, options=with_kubernetes(step.options, json.loads(arguments)))


def stop(place: Place, origin: Spec, cluster: Mapping[str, Any] | None = None, why: str = "") -> None:
    """Stop what still runs of a run that was left open, and close it. Says so, with the reason. Raises DefinitionError if it cannot."""
    steps = [dict(step.options.extra).get("kubernetes") for step in origin.steps]
    cluster = cluster or place.settings.cluster if any(steps) else None
    since = f", since {why}" if why else ""
    said = f"run {origin.run} was left open by a process that is gone"
    if cluster is None:
        print(f"{said}: it is closed{since}", file=sys.stderr, flush=True)
        _close(place, origin, None)
        return
    from flowbook.engine.launch import kubernetes
    from flowbook.engine.launch.apiserver import Api

    api = Api.connect(cluster.get("context"))
    own = [json.loads(arguments).get("namespace") for arguments in steps if arguments is not None]
    namespaces = sorted({each or cluster.get("namespace") or api.namespace for each in own})
    count = sum(len(kubernetes.running(api, place.store, origin.flow, origin.run, each)) for each in namespaces)
    pods = f"its {counted(count, 'pod')} {'are' if count > 1 else 'is'} stopped" if count else "it is closed"
    print(f"{said}: {pods}{' first' if why else ''}{since}", file=sys.stderr, flush=True)
    _close(place, origin, cluster)
    for each in namespaces:
        kubernetes.remove_run(api, place.store, origin.flow, origin.run, each)


def _close(place: Place, origin: Spec, cluster: Mapping[str, Any] | None) -> None:
    if (trouble := asyncio.run(_stop(place, origin, cluster))) is not None:
        raise DefinitionError(Finding("", f"run {origin.run} could not be stopped: {trouble}"))


async def _stop(place: Place, origin: Spec, cluster: Mapping[str, Any] | None) -> str | None:
    """As an engine that goes on with the run, and is asked to stop it; what has finished meanwhile is kept. Gives why it could not."""
    folder = Path(tempfile.mkdtemp(prefix="flowbook-"))
    machine = Machine(folder=folder)
    surroundings = Surroundings(dict(os.environ), str(Path.cwd()), tuple(sys.path), cluster)
    run = Run(place.store, origin.flow, origin.run, machine, surroundings, adopt=True)
    run.stop()
    try:
        return None if await run.drive() is not None else run.last_trouble
    finally:
        machine.close()
        shutil.rmtree(folder, ignore_errors=True)
