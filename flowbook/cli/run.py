"""run and resume: the spec is written, and the run is driven to its end in this process.

The engine is the one of the notebook (engine/scheduler.py), without its socket: what happens comes from the run itself, event by event,
and goes to a Screen. A first Ctrl-C or SIGTERM asks the run to stop, as a stop button would; a second one ends its workers at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook.cli import FAILED, INTERRUPTED, SUCCEEDED, TERMINATED, NotConfigured, failure, leftover, nearby
from flowbook.cli.place import Place
from flowbook.cli.program import user_traceback
from flowbook.cli.progress import Screen, screen_for
from flowbook.cli.text import meant, one_place
from flowbook.engine.launch.fork import Begun
from flowbook.engine.launch.local import Attempt, environment
from flowbook.engine.scheduler import Machine, Run
from flowbook.engine.scheduler import Place as Surroundings
from flowbook.engine.server import Server
from flowbook.errors import ClusterError, DefinitionError, Finding, StoreError
from flowbook.spec.decorators import notes_of
from flowbook.spec.flow import Spec
from flowbook.store import codec, layout
from flowbook.store.base import Store
from flowbook.store.tags import change, checked

if TYPE_CHECKING:
    from flowbook.spec.marks import Mark

TICK_S = 0.1
REACH_S = 10.0  # for a cluster to answer, before there is a run
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLUSTERS = ("kubernetes",)  # decorators that ask for other machines than this one


def run(place: Place, given: argparse.Namespace) -> int:
    """``run``: a new run; nothing of other runs is taken."""
    return _go(place, given, None, ())


def resume(place: Place, given: argparse.Namespace) -> int:
    """``resume [STEP]``: a new run that takes over what succeeded in an earlier one, as far as it still holds.

    A run that nobody drives any more, and that would do the same in pods, is itself gone on with (cli/leftover.py).
    """
    assert place.cls is not None
    name = place.cls.__name__
    ids = place.runs(name)
    if not ids:
        raise DefinitionError(Finding("resume", f"{name} has no run yet", f"`{place.spell('run')}` starts one."))
    origin = place.known_run(name, given.origin_run_id) if given.origin_run_id else ids[-1]
    if not given.step and not given.params:
        leftover.must_not_run(place, name, origin)
    return _go(place, given, place.spec(name, origin), (given.step,) if given.step else ())


def _go(place: Place, given: argparse.Namespace, origin: Spec | None, again: tuple[str, ...]) -> int:
    from flowbook import build

    assert place.cls is not None
    program = build.program_of(place.cls, with_marks=marks_of(given.withs, place.settings.cluster is not None))
    program.check()
    steps = [node.name for node in program.graph.nodes]
    for step in again:
        if step not in steps:
            raise DefinitionError(Finding("resume", f"{place.flow} has no step {step!r}", meant(step, steps, "Steps")))
    for word in place.given.ignored:
        print(f"{word} means nothing here and is ignored", file=sys.stderr)
    _must_be_writable(given.run_id_file)
    user = build.user_name()
    placing = _Placing(place, given, origin)
    spec = build.spec_of(
        program,
        place.store,
        params=values(place, given.params, origin, user or ""),
        tags=checked(given.tag),
        origin=origin,
        again=again,
        max_parallel=given.max_workers or place.settings.max_parallel,
        user=user,
        branch=place.given.branch,
        production=place.given.production,
        finish=placing,
    )
    adopt = origin is not None and spec.run == origin.run
    with _Held() as held:  # from now on there is a run, which is stopped and not just left
        _tell_run(place, spec, given)
        screen = screen_for(spec, quiet=given.quiet)
        if adopt:
            screen.say(f"the engine of run {spec.run} was gone: this process goes on with it, and with its pods")
            if given.tag:
                change(place.store, spec.flow, spec.run, add=given.tag, strict=True)
        for name, options in program.options.items():
            for note in notes_of(options, placing.cluster is not None):
                screen.say(f"step {name}: {note}")
        for note in program.notes:
            screen.say(note)
        code = _drive(place, spec, screen, held, placing.cluster, adopt)
    _retire(place, spec.flow)
    return code


class _Placing:
    """Decides, as a spec is about to be written, whether steps go to a cluster; `cluster` is then what the engine is told of it.

    Gives the spec of `origin` itself where that is to be gone on with. Raises NotConfigured where there is no cluster, before there is a run.
    """

    def __init__(self, place: Place, given: argparse.Namespace, origin: Spec | None) -> None:
        self._place, self._given, self._origin = place, given, origin
        self._yes = bool(getattr(given, "yes", False))
        self.cluster: dict[str, Any] | None = None

    def __call__(self, spec: Spec) -> Spec:
        steps = [*spec.steps, *(self._origin.steps if self._origin is not None else ())]
        if not any(name in CLUSTERS for step in steps for name, _ in step.options.extra):
            return spec
        from flowbook.engine.launch.placing import placed, placement_of

        every = placement_of(self._origin) if self._place.settings.cluster is not None else None
        asked = spec
        spec, self.cluster = placed(spec, self._place.settings.cluster, os.environ, every=every, yes=self._yes)
        if self.cluster is not None:
            try:
                _reach(self.cluster.get("context"))
            except ClusterError as error:
                raise NotConfigured(f"{error}. Nothing was run. `flowbook doctor` looks closer.") from None
        if self._origin is None or not leftover.left_open(self._place, self._origin):
            return spec
        why = leftover.changed(asked, self._origin, self._given)
        if why is None and self.cluster is not None:
            return self._origin
        leftover.stop(self._place, self._origin, self.cluster, why or "its steps are to run on this machine")
        return spec


def _reach(context: str | None) -> None:
    """Raises ClusterError where there is no cluster, none that answers soon, or one that does not know who asks.

    Once a run has begun, a cluster that does not answer is waited for.
    """
    from flowbook.engine.launch import podstatus
    from flowbook.engine.launch.apiserver import Api, Refused

    api = Api.connect(context, patience_s=REACH_S, answer_s=REACH_S)
    try:
        api.get("/version")
    except Refused as refused:
        if refused.code == 401:  # any other: it answers, and what it refuses may be this question only
            raise ClusterError(podstatus.refused(refused.code, refused.body, "use pods", api.namespace).message) from None


def _retire(place: Place, flow: str) -> None:
    """Remove runs that are no longer kept, once enough of them have gathered, as the engine of a notebook does."""
    from flowbook.store import garbage

    keep = place.settings.keep_runs
    try:
        if garbage.retention_due(place.store, flow, keep):
            garbage.collect(place.store, keep, flow=flow, thorough=False)
    except KeyboardInterrupt:
        return  # the run has ended as was told; what is half removed, the next collection removes
    except StoreError as error:
        print(f"old runs of {flow} were not removed: {error}", file=sys.stderr)


class _Held:
    """Signals that come when there is a run, and nobody yet who could stop it tidily: they are kept for its Driver."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Held:
        for number in STOPPING:
            self._before[number] = signal.signal(number, lambda came, frame: self.came.append(came))
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Signals mean again what they meant before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _drive(place: Place, spec: Spec, screen: Screen, held: _Held, cluster: Mapping[str, Any] | None, adopt: bool) -> int:
    surroundings = Surroundings(dict(os.environ), str(Path.cwd()), tuple(sys.path), cluster)
    env = environment(Attempt({}, Path(os.devnull), surroundings.env))  # of attempts that ask for one core, as most do
    driver = Driver(place.store, spec, screen, surroundings, held.came, adopt)
    if cluster is None and (forked := nearby.fork_server(spec, env)) is not None:
        driver.servers.append((forked, env))
    begun = time.monotonic()
    ended = asyncio.run(driver.drive())
    held.release()  # the run has ended: what follows may be interrupted
    code = _told(place, driver, ended, time.monotonic() - begun)
    if not driver.signal:
        _call_hooks(place, spec, ended == "succeeded")
    return code


def _tell_run(place: Place, spec: Spec, given: argparse.Namespace) -> None:
    """Write the run's id into the files that were asked for."""
    if given.run_id_file:
        Path(given.run_id_file).write_text(spec.run)
    if given.runner_attribute_file:  # of flowbook.Runner, which waits for it: whole or not at all
        told = Path(given.runner_attribute_file)
        told.with_suffix(".part").write_text(json.dumps({"flow_name": spec.flow, "run_id": spec.run, "store": place.store.describe()}))
        told.with_suffix(".part").replace(told)


def values(place: Place, given: Mapping[str, str], origin: Spec | None, user: str) -> dict[str, Any]:
    """The parameters of a run by attribute: as given, else as the run had them that is gone on with, else the defaults.

    Raises DefinitionError with all findings.
    """
    from flowbook.spec import parameters

    assert place.cls is not None
    known = parameters.parameters_of(place.cls)
    kept: dict[str, Any] = {}
    for attribute, parameter in known.items():
        if origin is not None and attribute in origin.params and parameter.is_option and parameter.name not in given:
            kept[attribute] = codec.load(place.store, origin.params[attribute], name=f"parameter {parameter.name}")
    # What is kept is no question any more: a class without those parameters is asked for the others.
    asked = type(place.cls.__name__, (place.cls,), dict.fromkeys(kept)) if kept else place.cls
    found = parameters.resolve(asked, given, os.environ, user=user, say=lambda text: print(text, file=sys.stderr))
    os.environ.update(parameters.config_environment(place.cls))  # each task runs the file again, whose class body may need its configs
    return {**found, **kept}


def marks_of(withs: list[str], clustered: bool) -> list[Mark]:
    """--with NAME:k=v as marks. Raises NotConfigured for a cluster that is not `clustered`: whose pods would not reach the store."""
    if not withs:
        return []
    from flowbook.spec.decorators import parse_with

    marks = [parse_with(text) for text in withs]
    for mark in marks:
        if mark.name in CLUSTERS and not clustered:
            from flowbook.engine.launch.placing import NO_STORE

            raise NotConfigured(f"--with {mark.name}: {NO_STORE}.")
    return marks


def _told(place: Place, driver: Driver, ended: str | None, seconds: float) -> int:
    """Say how the run ended, and what to do next. Gives the exit code."""
    spec, screen = driver.spec, driver.screen
    resume = place.spell("resume")
    screen.finish(ended or "failed", seconds)
    sys.stdout.flush()
    if ended == "succeeded":
        return SUCCEEDED
    if driver.signal:
        print(f"run {spec.run} was stopped; what had succeeded is kept. `{resume}` goes on with it", file=sys.stderr)
        return TERMINATED if driver.signal == signal.SIGTERM else INTERRUPTED
    if ended == "stopped":
        print(f"run {spec.run} was stopped from elsewhere. `{resume}` goes on with it", file=sys.stderr)
        return FAILED
    state = driver.run.state if driver.run is not None else None
    trouble = driver.run.last_trouble if driver.run is not None else ""
    briefly = screen.briefly if one_place(screen.stream, sys.stderr) else str  # who reads stderr alone is told all
    print(failure.text(spec, state, place, trouble, briefly), file=sys.stderr)
    return FAILED


def _must_be_writable(file: str | None) -> None:
    """Raises DefinitionError before a run is started whose id could not be written down."""
    if file is None:
        return
    try:
        Path(file).open("a").close()
    except OSError as error:
        raise DefinitionError(
            Finding("--run-id-file", f"{file} cannot be written: {error.strerror}", "Name a file in a folder that is there.")
        ) from None


def _call_hooks(place: Place, spec: Spec, succeeded: bool) -> None:
    """The functions of @exit_hook, in this process. One that fails shows its traceback, and changes nothing else."""
    from flowbook.spec.decorators import exit_hooks_of

    assert place.cls is not None
    hooks = exit_hooks_of(place.cls)
    for function in [each for hook in hooks for each in (hook.on_success if succeeded else hook.on_error)]:
        import inspect

        from flowbook import client

        try:
            wanted = inspect.getfullargspec(function)
            if "run" in [*wanted.args, *wanted.kwonlyargs] or wanted.varkw:
                function(run=client.Run(f"{spec.flow}/{spec.run}", store=place.store))
            else:
                function()
        except Exception as error:
            sys.stdout.flush()
            print(user_traceback(error), end="", file=sys.stderr)
            print(
                f"error: the exit hook {getattr(function, '__name__', function)} failed; the run itself has ended as told above",
                file=sys.stderr,
            )


class Driver:
    """One run from its first event to its last, with signals and a screen."""

    def __init__(self, store: Store, spec: Spec, screen: Screen, surroundings: Surroundings, came: list[int], adopt: bool = False) -> None:
        """`came`: signals that came before `drive`, and are heeded there. `adopt`: the run is one whose own engine is gone."""
        self.came, self.adopt = came, adopt
        self.store, self.spec, self.screen, self.surroundings = store, spec, screen, surroundings
        self.servers: list[tuple[Begun, Mapping[str, str]]] = []  # fork servers that are there already
        self.run: Run | None = None
        self.signal: int = 0  # the first that came
        self._at_once = False
        self._told = 0  # batches of events that the screen has seen

    async def drive(self) -> str | None:
        """Gives the state in which the run ended; None if it could not be driven to its end."""
        folder = Path(tempfile.mkdtemp(prefix="flowbook-"))
        machine = Machine(folder=folder)
        assert machine.local is not None and machine.local.forks is not None
        for begun, env in self.servers:
            machine.local.forks.take(begun, env, self.surroundings.cwd, self.surroundings.sys_path)
        key = (self.spec.flow, self.spec.run)
        server = Server(self.store, machine)

        def say(hint: dict[str, object]) -> None:
            self._hear(hint)
            server.tell(key, hint)

        def changed() -> None:
            self._show_events()
            server.wake(key)

        self.run = Run(self.store, *key, machine, self.surroundings, say=say, changed=changed, adopt=self.adopt)
        loop = asyncio.get_running_loop()
        for number in STOPPING:
            loop.add_signal_handler(number, self._on_signal, number)
        for came in self.came:
            loop.call_soon(self._on_signal, came)
        ticking = asyncio.create_task(self._tick())
        try:
            async with server.hosting(folder / "engine.sock", key, self.run):
                return await self.run.drive()
        finally:
            ticking.cancel()
            self._show_events()
            machine.close()
            shutil.rmtree(folder, ignore_errors=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            assert self.run is not None
            self.run.show_output()
            if self.run.state is not None:
                self._show_events()  # of a run that is gone on with nothing new may happen for long
                self.screen.tick(self.run.state)
            for live in self.run.live.values() if self._at_once else ():
                if live.pod is not None:
                    live.pod.cancel()  # the first asks an attempt to end, the next one ends it

    def _hear(self, hint: dict[str, object]) -> None:
        assert self.run is not None
        self.screen.hint(hint, self.run)

    def _show_events(self) -> None:
        assert self.run is not None
        batches, self._told = self.run.packed[self._told :], len(self.run.packed)
        for batch in batches:
            for event in json.loads(batch):
                self.screen.event(event, self.run.state)
        if batches and self.run.state is not None:
            self.screen.settled(self.run.state)

    def _on_signal(self, number: int) -> None:
        assert self.run is not None
        if self.signal:
            self.screen.say("the tasks are ended at once")
            self.run.stop()
            self._at_once = True
            return
        self.signal = number
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.screen.say(f"{name}: the run is being stopped, and its tasks get some seconds to end; once more ends them at once")
        request = json.dumps({"ask": "stop", "step": None, "index": None}).encode()
        with contextlib.suppress(Exception):  # a store that refuses: the second signal needs none
            self.store.create(layout.request(self.spec.flow, self.spec.run, f"stop-{time.time_ns()}"), request)
        self.run.poke()
