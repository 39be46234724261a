"""Commands that only read: check, show, graph, runs, logs, dump, card, report, package, version."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook.cli import SUCCEEDED
from flowbook.cli.failure import reason
from flowbook.cli.place import Place, RunPath
from flowbook.cli.text import clean, has_colours, meant, styled, table, time_text
from flowbook.errors import ArtifactError, DefinitionError, Finding, SettingError
from flowbook.spec.amounts import seconds_text, size_text
from flowbook.spec.decorators import notes_of
from flowbook.spec.flow import task_name
from flowbook.store import layout

if TYPE_CHECKING:
    from flowbook.build import Program
    from flowbook.engine.events import Task
    from flowbook.engine.state import TaskState
    from flowbook.spec.classgraph import Graph, Node
    from flowbook.store.glance import Row

MOST_TASKS = 100  # whose output is printed, where a step has more
MOST_CARDS = 50  # on one page
STATES = ("succeeded", "failed", "stopped", "running", "open")

# ---- the flow itself ------------------------------------------------------------------------------------------------------


def check(place: Place, given: argparse.Namespace) -> int:
    """``check``: all findings at once, those of parameters that are given too. Exit code 2 if there are any."""
    program = _program(place, given.withs)
    findings = list(program.findings)
    if given.params:
        from flowbook.cli.run import values

        try:
            values(place, given.params, None, "")
        except DefinitionError as error:
            findings += [finding for finding in error.findings if finding not in findings]
    findings += _pod_findings(place, program) if not findings else []
    if findings:
        raise DefinitionError(*findings)
    nodes = program.graph.nodes
    for name, options in program.options.items():
        for note in notes_of(options, place.settings.cluster is not None):
            print(f"step {name}: {note}")
    for note in program.notes:
        print(note)
    print(f"{program.name}: {len(nodes)} step{'s' * (len(nodes) != 1)}, nothing wrong")
    for line in _starts(program):
        print(line)
    return SUCCEEDED


def _pod_findings(place: Place, program: Program) -> list[Finding]:
    """What is wrong with the pods that steps would have."""
    settings = place.settings.cluster
    if settings is None or not any(name == "kubernetes" for options in program.options.values() for name, _ in options.extra):
        return []
    from flowbook.engine.launch import podspec

    try:
        return podspec.findings(program.steps(), podspec.Cluster.read(settings), os.environ, yes=True)
    except SettingError as error:
        return [Finding("kubernetes_tiers", str(error))]


def show(place: Place, given: argparse.Namespace) -> int:
    """``show``: what a reader of the flow wants to know."""
    program = _program(place)
    colours = has_colours(sys.stdout)
    print(styled(program.name, "bold", colours))
    for line in inspect.cleandoc(place.cls.__doc__ or "").splitlines() if place.cls is not None else ():
        print(f"  {line}".rstrip())
    for node in program.graph.nodes:
        print(f"\n{styled(node.name, 'bold', colours)}{_way(node)}")
        for line in inspect.cleandoc(node.function.__doc__ or "").splitlines():
            print(f"  {line}".rstrip())
        for word in _asks(program, node):
            print(f"  {word}")
    if program.parameters:
        print(f"\n{styled('parameters', 'bold', colours)}")
    for parameter in program.parameters.values():
        default = f", default {parameter.default_text}" if parameter.default_text is not None else ""
        print(f"  {parameter.option}: {parameter.help or ''} ({parameter.expected}{default})")
    for line in _starts(program):
        print(line)
    if program.findings:
        print(f"\n{len(program.findings)} finding{'s' * (len(program.findings) != 1)}: `{place.spell('check')}` tells them")
    return SUCCEEDED


def graph(place: Place, given: argparse.Namespace) -> int:
    """``graph``: the steps and what leads where."""
    found = _program(place).graph
    if given.json:
        print(json.dumps(_graph_json(found), indent=2))
    elif given.dot:
        print("\n".join(_dot(found)))
    else:
        print("\n".join(_graph_text(found)))
    return SUCCEEDED


def package(place: Place, given: argparse.Namespace) -> int:
    """``package list``: the local files that a run takes along."""
    from flowbook.store import package as packages
    from flowbook.store.memory import MemoryStore

    file = Path(str(getattr(sys.modules["__main__"], "__file__", "")))
    rows = [(str(file), file.stat().st_size), *packages.listing(packages.program_modules(file.resolve(), MemoryStore()))]
    for path, size in rows:
        print(f"{size_text(size):>10}  {path}")
    print(f"{size_text(sum(size for _, size in rows)):>10}  in {len(rows)} file{'s' * (len(rows) != 1)}")
    return SUCCEEDED


def version(place: Place, given: argparse.Namespace) -> int:
    from flowbook._version import __version__

    print(f"flowbook {__version__}, Python {sys.version.split()[0]}")
    return SUCCEEDED


def _program(place: Place, withs: list[str] | None = None) -> Program:
    from flowbook import build
    from flowbook.spec.decorators import parse_with

    assert place.cls is not None
    return build.program_of(place.cls, with_marks=[parse_with(text) for text in withs or ()])


def _way(node: Node) -> str:
    """``  → train, for each of rates``."""
    way = node.next
    if way is None:
        return "  (the end)"
    steps = ", ".join(way.steps)
    if way.kind == "foreach":
        return f"  → {steps}, for each of {way.name or 'what it gives'}"
    if way.kind == "switch":
        return f"  → one of {steps}, by {way.name}" + (f"; else {way.default}" if way.default else "")
    return f"  → {steps}"


def _asks(program: Program, node: Node) -> Iterator[str]:
    options = program.options[node.name]
    if node.joins:
        yield f"joins {', '.join(node.before)}"
    for name in ("cpu", "gpu", "memory_mb", "disk_mb"):
        value = getattr(options.resources, name)
        if value not in (None, 0) and (name, value) != ("cpu", 1.0):
            yield f"needs {name.removesuffix('_mb')} {value:g}{' MB' if name.endswith('_mb') else ''}"
    if options.retry.times:
        yield f"tried again {options.retry.times} times, {options.retry.minutes_between_retries:g} minutes between"
    if options.timeout_s is not None:
        yield f"at most {seconds_text(options.timeout_s)}"
    if options.catch:
        yield f"an error is caught in {options.catch}"
    if options.cards:
        yield f"cards: {', '.join(card.id or card.type for card in options.cards)}"
    if options.checkpoint is not None:
        yield "keeps checkpoints"


def _starts(program: Program) -> list[str]:
    """What would start the flow once it is deployed."""
    from datetime import UTC, datetime

    from flowbook.spec import schedules

    return schedules.describe(program.cls, datetime.now(UTC))


def _graph_text(found: Graph) -> Iterator[str]:
    depth = {node.name: len(node.stack) for node in found.nodes}
    for node in found.nodes:
        mark = " (join)" if node.joins else ""
        yield f"{'  ' * depth[node.name]}{node.name}{mark}{_way(node)}"


def _graph_json(found: Graph) -> dict[str, Any]:
    steps = {}
    for node in found.nodes:
        way = node.next
        steps[node.name] = {
            "line": node.line,
            "doc": inspect.cleandoc(node.function.__doc__ or ""),
            "joins": node.joins,
            "kind": way.kind if way is not None else "end",
            "next": list(way.steps) if way is not None else [],
            "by": way.name if way is not None else None,
            "default": way.default if way is not None else None,
            "scope": list(node.scope),
        }
    return {"flow": found.name, "start": found.start, "end": found.end, "steps": steps}


def _dot(found: Graph) -> Iterator[str]:
    yield f"digraph {found.name} {{"
    yield "  rankdir=LR; node [shape=box, style=rounded];"
    for node in found.nodes:
        yield f"  {node.name};"
        way = node.next
        for step in way.steps if way is not None else ():
            label = {"foreach": "each", "switch": way.name or "", "linear": "", "split": ""}[way.kind] if way is not None else ""
            yield f"  {node.name} -> {step}" + (f' [label="{label}"];' if label else ";")
    yield "}"


# ---- runs -----------------------------------------------------------------------------------------------------------------


def runs(place: Place, given: argparse.Namespace) -> int:
    """``runs``: newest first. A run that has not ended is ``running``, or ``open`` if the process that drove it is gone."""
    if given.state and given.state not in STATES:
        raise DefinitionError(Finding("", f"there is no state {given.state!r}", meant(given.state, STATES, "States")))
    if given.flow is None and place.flow is None:
        print("\n".join(place.flows()) or "the store has no flow yet")
        return SUCCEEDED
    flow = place.known_flow(given.flow)
    chosen = _chosen_runs(place, flow, given)
    rows = list(islice(chosen, given.n or None))
    if given.json:
        for run, state, row in rows:
            fields = {"run": run, "state": state, "started_at": row.started_at, "ended_at": row.ended_at}
            print(json.dumps({**fields, "user": row.user, "tags": list(row.tags)}))
        return SUCCEEDED
    filtered = given.tag or given.state or given.namespace
    if not rows:
        print(f"no run of {flow}" + (" that fits" if filtered else " yet"))
        return SUCCEEDED
    shown = []
    for run, state, row in rows:
        took = seconds_text(row.ended_at - row.started_at) if row.ended_at and row.started_at else "-"
        shown.append((run, state, time_text(row.started_at), took, row.user or "-", ", ".join(row.tags)))
    print("\n".join(table(shown, ("run", "state", "started", "took", "user", "tags"), has_colours(sys.stdout))))
    if next(chosen, None) is not None:
        those = "those that fit" if filtered else f"{len(place.runs(flow))} runs"
        print(f"… these are the newest {len(rows)} of {those}; -n 0 shows all")
    left = next((run for run, state, _ in rows if state == "open"), None)
    if left is not None:
        words = ("resume", "--origin-run-id", left)
        resume = place.spell(*words) if place.cls is not None else " ".join(words)
        print(f"open: the process that drove the run is gone; what had succeeded is kept. `{resume}` goes on with run {left}")
    return SUCCEEDED


def _chosen_runs(place: Place, flow: str, given: argparse.Namespace) -> Iterator[tuple[str, str, Row]]:
    """Run, state in a word, and the rest, of the runs that were asked for."""
    from flowbook.store.glance import Glance

    driven: set[tuple[str, str]] | None = None  # asked for only if a run has not ended
    for run, row in Glance(place.store, flow):
        state = row.state or ("damaged" if row.damaged else "open")
        if state == "open":
            driven = place.driven() if driven is None else driven
            state = "running" if (flow, run) in driven else "open"
        tags = (*row.tags, *((f"user:{row.user}",) if row.user else ()))
        wanted = (None, state, *(["running"] if state == "open" else []))  # to the client each run that has not ended is running
        if given.state in wanted and all(tag in tags for tag in given.tag) and given.namespace in (None, "", *tags):
            yield run, state, row


def logs(place: Place, given: argparse.Namespace) -> int:
    """``logs RUN/STEP[/TASK]``: stdout and stderr of a task are one text, as they came; then why it failed, if it did."""
    path = place.path(given.path)
    tasks = _Tasks(place, path)
    colours, shown = has_colours(sys.stdout), 0
    for task in tasks.logged():
        lines = list(_log(place, tasks, task, given.attempt))
        if not lines:
            continue
        shown += 1
        if shown > MOST_TASKS:
            print(f"… of more tasks than {MOST_TASKS}: name one, {path.run}/{task.step}/TASK", file=sys.stderr)
            break
        prefix = f"[{path.run}/{task.step}/{layout.task_key(task.index, task.part)}] " if path.task is None else ""
        sys.stdout.writelines(f"{prefix}{clean(line, colours)}\n" for line in lines)
    if not shown:
        name = "/".join(part for part in (path.run, path.step, path.task) if part)
        ran = any(tasks.ran(step, index) for step, index in tasks)
        which = f"attempt {given.attempt} of {name}" if given.attempt is not None else name
        print(f"{which} printed nothing that is kept" if ran else f"{name} did not run", file=sys.stderr)
    return SUCCEEDED


def _log(place: Place, tasks: _Tasks, task: Task, wanted: int | None) -> Iterator[str]:
    """The lines of one task: which attempts failed before, what the one that is shown printed, and its traceback."""
    origin, there, last = tasks.state.printed_by(task)
    attempt, failures = last if wanted is None else wanted - 1, tasks.failures.get(task, {})
    for number, error in failures.items() if wanted is None else ():
        if number != attempt:
            yield f"({_failed(number, error).splitlines()[0]}; --attempt {number + 1} shows it)"
    key = layout.output(tasks.path.flow, origin, task.step, there, attempt, task.part)
    if place.store.exists(key):
        yield from place.store.get(key).decode("utf-8", "replace").rstrip("\n").split("\n")
    if attempt in failures:
        traceback = str(failures[attempt].get("traceback") or "").rstrip()
        yield from (traceback or _failed(attempt, failures[attempt])).split("\n")


def _failed(attempt: int, error: dict[str, Any]) -> str:
    return f"attempt {attempt + 1} {'was lost' if error.get('reason') == 'lost' else 'failed'}: {reason(error)}"


def dump(place: Place, given: argparse.Namespace) -> int:
    """``dump RUN/STEP[/TASK]``: the artifacts that tasks leave, inherited ones too."""
    from flowbook.store.results import Reader, use

    path = place.path(given.path)
    tasks = _Tasks(place, path)
    wanted = set(filter(None, (given.include or "").split(",")))
    known: set[str] = set()
    idle: dict[str, None] = {}  # steps with tasks that did not run
    reader = Reader(place.store, path.flow, vars(sys.modules["__main__"]))
    with use(place.store, vars(sys.modules["__main__"]), flow=path.flow):
        for step, index in tasks:
            if not tasks.ran(step, index):
                idle[step] = None
                continue
            names = reader.visible_names(path.flow, path.run, step, index)
            known |= names.keys()
            if wanted and not wanted & names.keys():
                continue
            title = styled(f"{path.flow}/{path.run}/{step}/{layout.task_key(index)}", "bold", has_colours(sys.stdout))
            print(title + tasks.how(step, index))
            for name in sorted(names):
                if (name in wanted) or (not wanted and (given.private or not name.startswith("_"))):
                    print(f"  {name} = {_shown(reader, name, names[name], given.max_value_size)}")
    if idle:
        print(f"not run: {', '.join(idle)}")
    for word in sorted(wanted - known):
        name = "/".join(part for part in (path.run, path.step, path.task) if part)
        raise DefinitionError(Finding(name, f"it has no artifact {word!r}", meant(word, sorted(known), "Artifacts")))
    return SUCCEEDED


def _shown(reader: Any, name: str, entry: Mapping[str, Any], limit: int) -> str:
    """An artifact in a line: small ones as they are, others by their preview; nothing large is loaded for it."""
    if "json" in entry:
        text = repr(entry["json"])
    elif int(entry.get("size") or 0) > limit:
        text = f"{entry.get('repr') or '…'}  ({entry.get('type')}, {size_text(int(entry['size']))})"
    else:
        try:
            text = repr(reader.load(entry, name))
        except ArtifactError as error:
            text = f"{entry.get('repr') or '?'}  ({error})"
    text = clean(text.replace("\n", " "), False)
    return text if len(text) <= limit else f"{text[:limit]}…"


def card(place: Place, given: argparse.Namespace) -> int:
    """``card [get]|view|list RUN[/STEP[/TASK]]``: of a run its own card, and those of its tasks."""
    from flowbook.cards import html

    path = place.path(given.path)
    cards = _Cards(place, path)
    found = list(cards)
    if given.action == "list":
        print("\n".join(f"{task}  {id}" for task, id, _ in found) or f"{given.path} has no card")
        return SUCCEEDED
    chosen = [card for card in found if given.id is None or card[1] == given.id]
    if not chosen:
        what = f"no card {given.id!r}" if given.id else "no card"
        ids = list(dict.fromkeys(id for _, id, _ in found))
        raise DefinitionError(Finding(given.path, what, meant(given.id or "", ids, "Cards") if ids else "A step has one with @card."))
    if len(chosen) > MOST_CARDS:
        print(f"{len(chosen)} cards, of which the page has the first {MOST_CARDS}; {path.run}/STEP/TASK has fewer", file=sys.stderr)
    title = "/".join(part for part in (path.flow, path.run, path.step, path.task) if part)
    page = html.page([read() for _, _, read in chosen[:MOST_CARDS]], title)
    if given.action == "get" and not given.file:
        sys.stdout.write(page)
        return SUCCEEDED
    file = Path(given.file) if given.action == "get" else Path(tempfile.mkdtemp(prefix="flowbook-card-")) / "card.html"
    _write_page(file, page)
    print(file)
    if given.action == "view" and sys.stdout.isatty():
        import webbrowser  # slow to import

        webbrowser.open(file.as_uri())
    return SUCCEEDED


def report(place: Place, given: argparse.Namespace) -> int:
    """``report [RUN] [-o FILE]``."""
    from flowbook.cards.report import report as page_of

    path = place.path(given.path, ("RUN",))
    page = page_of(place.store, path.flow, path.run, lost=_Cards(place, path).lost)
    if given.file == "-":
        sys.stdout.write(page)
        return SUCCEEDED
    file = Path(given.file or f"{path.flow}-{path.run}.html")
    _write_page(file, page)
    print(file)
    return SUCCEEDED


def _write_page(file: Path, page: str) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise DefinitionError(Finding(str(file), f"it cannot be written: {error.strerror or error}", "Name another file.")) from None


class _Cards:
    """The cards that a path names: (task, id, what reads it), the run's own in front if the path is a run."""

    def __init__(self, place: Place, path: RunPath) -> None:
        self._place, self._path, self._tasks = place, path, _Tasks(place, path)

    def __iter__(self) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        path = self._path
        if path.step is None and (whole := self._of_run()) is not None:
            yield path.run, "run", lambda: whole
        for step, index in self._tasks:
            for key in self._keys(step, index):
                id = key.rpartition("/")[2].removeprefix("card-").removesuffix(".json")
                yield f"{path.run}/{step}/{layout.task_key(index)}", id, partial(self._read, step, index, key)

    def _keys(self, step: str, index: layout.Index, of_run: bool = False) -> list[str]:
        """Of the attempt that made a task's result, or that was its last."""
        from flowbook.cards import whole

        run, there, attempt = self._tasks.printed_by(step, index)
        return whole.keys(self._place.store, (self._path.flow, run, step, there, attempt), of_run)

    def _read(self, step: str, index: layout.Index, key: str) -> Any:
        from flowbook.cards import wire

        card, found = wire.read(self._place.store.get(key)), self._tasks.state_of(step, index)
        return wire.settled(card, found.state, found.error, lost=card["state"] == "running" and self.lost)

    def _of_run(self) -> Any:
        from flowbook.cards import whole, wire

        state = self._tasks.state.ended or ("failed" if self.lost else "running")
        store = self._place.store
        parts = (
            (task_name(step, index), wire.read(store.get(key))) for step, index in self._tasks for key in self._keys(step, index, True)
        )
        return whole.card(parts, self._path.flow, self._path.run, state)

    @cached_property
    def lost(self) -> bool:
        """Whether the run has not ended and no process of this machine drives it."""
        return self._tasks.state.ended is None and (self._path.flow, self._path.run) not in self._place.driven()


class _Tasks:
    """The tasks that a path RUN[/STEP[/TASK]] names, in order. Raises DefinitionError, with the nearest, for what is not there."""

    def __init__(self, place: Place, path: RunPath) -> None:
        from flowbook.engine import events
        from flowbook.engine.state import RunState

        self.spec = place.spec(path.flow, path.run)
        self.path, self.state = path, RunState(self.spec)
        self.failures: dict[Task, dict[int, dict[str, Any]]] = {}  # ERRORs by attempt; of one that was lost only a message
        for key in place.store.list(layout.log_prefix(path.flow, path.run)):
            for event in events.unbatch(place.store.get(key), key):
                self.state.apply(event)
                if event["e"] in ("failed", "lost"):
                    error = event.get("error") or {"reason": "lost", "message": event.get("message")}
                    self.failures.setdefault(events.task_of(event), {})[event.get("attempt", 0)] = error
        names = [step.name for step in self.spec.steps]
        if path.step is not None and path.step not in names:
            raise DefinitionError(Finding("", f"run {path.run} has no step {path.step!r}", meant(path.step, names, "Steps")))
        order = {name: i for i, name in enumerate(names)}
        found = [task for task in self.state.tasks if task.part == "body" and path.step in (None, task.step)]
        self._found = sorted(found, key=lambda task: (order[task.step], task.index))
        if path.task is not None:
            keys = [layout.task_key(task.index) for task in self._found]
            self._found = [task for task in self._found if layout.task_key(task.index) == path.task]
            if not self._found:
                raise DefinitionError(
                    Finding("", f"{path.step} of run {path.run} has no task {path.task!r}", meant(path.task, keys, "Tasks"))
                )

    def __iter__(self) -> Iterator[tuple[str, layout.Index]]:
        return ((task.step, task.index) for task in self._found)

    def logged(self) -> Iterator[Task]:
        """Those that may have something to say: also the plans of step cells that failed, which are no tasks to anybody else."""
        if self.path.task is None:
            yield from (task for task in self.failures if task.part == "plan" and self.path.step in (None, task.step))
        yield from self._found

    def ran(self, step: str, index: layout.Index) -> bool:
        """Whether the task ran at all, here or in the run that its result was taken from."""
        found = self.state_of(step, index)
        return bool(found.attempts) or found.state == "succeeded"

    def how(self, step: str, index: layout.Index) -> str:
        """How it stands with a task that ran and has not succeeded, to be put after its name."""
        found = self.state_of(step, index)
        if found.state == "failed":
            return f"  (failed: {(reason(found.error or {}).strip() or 'failed').splitlines()[0]})"
        words = {"succeeded": "", "stopped": "was stopped", "backoff": "failed, and waits to be tried again"}
        word = words.get(found.state, "has not ended")
        return f"  ({word})" if word else ""

    def state_of(self, step: str, index: layout.Index) -> TaskState:
        from flowbook.engine.events import Task

        return self.state.tasks[Task(step, index)]

    def printed_by(self, step: str, index: layout.Index) -> tuple[str, layout.Index, int]:
        """Run, index and attempt that made the result: there stands what it printed."""
        from flowbook.engine.events import Task

        return self.state.printed_by(Task(step, index))
