"""What is typed: `%%flowstep`, `%%flowparams`, `%%flowsetup` and `%flow COMMAND`. Parses, calls the session, prints.

COMMANDS is the table of `%flow`; help, completion and the docs are made from it.
"""

from __future__ import annotations

import argparse
import difflib
import html
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from traitlets import Bool

from flowbook.errors import DefinitionError, Finding, FlowbookError
from flowbook.kernel.api import RunHandle
from flowbook.kernel.api import flow as flow_object
from flowbook.kernel.display import Painter, clean_text, headline, largest, status_html, status_text
from flowbook.kernel.names import Scan, interruptible
from flowbook.kernel.runs import LISTED
from flowbook.kernel.session import CommandLine, Run, Session, must_have, nearest
from flowbook.spec import graph, options
from flowbook.spec.amounts import size_text
from flowbook.spec.flow import task_name
from flowbook.store import layout, preview
from flowbook.store import tags as run_tags

if TYPE_CHECKING:
    from flowbook.spec.flowspec import FlowSpec

TASK = re.compile(r"([A-Za-z_]\w*)(?:\[(\d+(?:,\s*\d+)*)\])?\Z")


OTHERS_CALL = {"--max-workers": "--max-parallel"}  # an option by Metaflow's name → ours


@dataclass(frozen=True)
class Command:
    """One `%flow` command: how it is written, what it does."""

    usage: str
    help: str
    call: Callable[[Session, str], Any]


class _Parser(argparse.ArgumentParser):
    """argparse with our errors: the nearest option is named, nothing exits the kernel."""

    def __init__(self, command: str) -> None:
        super().__init__(prog=f"%flow {command}", add_help=False, allow_abbrev=False)
        self.command = command

    def error(self, message: str) -> NoReturn:
        raise DefinitionError(Finding(self.prog, message, f"Usage: {COMMANDS[self.command].usage}"))

    def parse(self, line: str) -> argparse.Namespace:
        known, rest = self.parse_known_args(_split(line, self.prog))
        if rest:
            what, names = rest[0].partition("=")[0], [o for action in self._actions for o in action.option_strings]
            if what == "--with":
                raise DefinitionError(Finding(self.prog, "--with is of %flow run", "Write the decorator above the step, or its option."))
            near = OTHERS_CALL.get(what, "") if OTHERS_CALL.get(what) in names else nearest(what, names)
            hint = f"; did you mean {near}?" if near else ""
            raise DefinitionError(Finding(self.prog, f"unknown option {rest[0]!r}{hint}", f"Usage: {COMMANDS[self.command].usage}"))
        return known

    def add_parameters(self, names: Iterable[str]) -> None:
        """An option for each parameter, `--max_depth` also as `--max-depth`; see `parameters`."""
        for name in names:
            spelled = [f"--{name}", *([f"--{name.replace('_', '-')}"] if "_" in name else [])]
            self.add_argument(*spelled, dest=f"param {name}", metavar="VALUE")

    def parameters(self, given: argparse.Namespace) -> dict[str, str]:
        """What was typed for the parameters, as text."""
        found = {dest.removeprefix("param "): text for dest, text in vars(given).items() if dest.startswith("param ")}
        return {name: text for name, text in found.items() if text is not None}


def _split(line: str, where: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise DefinitionError(Finding(where, f"the line cannot be split into words: {error}", "Close the quotation mark.")) from None


# ---- run and wait -------------------------------------------------------------------------------------------------------


def start(
    session: Session,
    *,
    step: str | None = None,
    flow: str | None = None,
    cls: type[FlowSpec] | None = None,
    wait: bool,
    tags: Sequence[str],
    max_parallel: int | None,
    params: dict[str, Any],
    fresh: bool = False,
    kubernetes: Mapping[str, Any] | None = None,
    yes: bool = False,
) -> RunHandle:
    common: dict[str, Any] = {
        "params": params,
        "tags": tags,
        "max_parallel": max_parallel,
        "fresh": fresh,
        "kubernetes": kubernetes,
        "yes": yes,
    }
    if cls is not None:
        from flowbook.kernel import classes

        run, notes = classes.run(session, cls, **common)
        return _started(session, run, notes, wait)
    run, notes = session.run(step=step, flow=flow, **common)
    return _started(session, run, notes, wait)


def start_resume(session: Session, run_id: str | None, flow: str | None, wait: bool, params: Mapping[str, Any] | None = None) -> RunHandle:
    run, notes = session.resume(run_id, flow, params)
    return _started(session, run, notes, wait)


def start_attach(session: Session, run_id: str | None, flow: str | None, wait: bool) -> RunHandle:
    run, notes = session.runs.attach(run_id, flow)
    if run.view.ended is None:
        return _started(session, run, notes, wait)
    for note in notes:
        print(note, file=sys.stderr)
    painter = Painter(session, run)  # how it ended is shown, and no error of this cell
    painter.start()
    painter.paint()
    return RunHandle(session, run)


def show_at(session: Session, run_id: str | None, flow: str | None) -> RunHandle:
    run, notes = session.runs.at(run_id, flow)
    for note in notes:
        print(note, file=sys.stderr)
    if run.of_class:
        print(f"run {run.id} of the class {run.spec.flow}: read it as flow['{run.id}'], or with flowbook.client; a class binds no names")
        return RunHandle(session, run)
    made = sorted({n for s in run.spec.steps if not s.scope for n in s.saves} | {s.name for s in run.spec.steps})
    until = "" if session.flow(flow).at is None else f"; {run.command('at')} alone goes back to the newest run"
    print(f"names of run {run.id} ({run.view.ended or 'running'}): {', '.join(made)}{until}")
    return RunHandle(session, run)


def _started(session: Session, run: Run, notes: list[str], wait: bool) -> RunHandle:
    for note in notes:
        print(note, file=sys.stderr)
    waits = wait or not takes_input(session.shell)
    painter = CellPainter(session, run, waits)
    painter.start()
    handle = RunHandle(session, run)
    if waits:
        _wait_painting(session, run, painter)
    return handle


class CellPainter(Painter):
    """A painter whose cell may end with the error of the run: then the status leaves it out, as it is shown just below."""

    ERROR = re.compile(r'<pre class="fb-error">.*?</pre>', re.DOTALL)

    def __init__(self, session: Session, run: Run, raises: bool) -> None:
        super().__init__(session, run)
        self.raises = raises

    def follow(self, run: Run) -> None:
        self.raises = False  # it is no run of the cell
        super().follow(run)

    def _send(self, display_id: str, page: str, text: str, update: bool = True) -> None:
        super()._send(display_id, self.ERROR.sub("", page) if self.raises else page, text, update)


def takes_input(shell: Any) -> bool:
    """False under nbclient and papermill: nobody watches, and a saved notebook must hold the end."""
    kernel = getattr(shell, "kernel", None)
    return kernel is None or bool(getattr(kernel, "_allow_stdin", True))


def _wait_painting(session: Session, run: Run, painter: Painter | None = None) -> None:
    try:
        with interruptible():
            session.wait(run)
    except KeyboardInterrupt:
        if isinstance(painter, CellPainter):
            painter.raises = False
        raise FlowbookError(
            f"the wait was interrupted; run {run.id} goes on ({run.command('wait')} waits again, {run.command('stop')} ends it)"
        ) from None
    finally:
        if painter is not None:
            painter.paint()
            if not takes_input(session.shell):
                painter.finish()
    session.outcome(run)


def _run(session: Session, line: str) -> RunHandle:
    words = _split(line, "%flow run")
    if (cls := _class_of(session, words)) is not None:
        return _run_class(session, cls, line)
    _refuse_what_is_no_step(session, words)
    defined = session.existing(_flow_option(words))
    parser = _run_parser("step")
    parser.add_parameters(defined.params)
    given = parser.parse(line)
    return start(
        session,
        step=given.step,
        flow=given.flow,
        wait=given.wait,
        tags=given.tag,
        max_parallel=given.max_parallel,
        params={name: CommandLine(text) for name, text in parser.parameters(given).items()},
        fresh=given.fresh,
        kubernetes=with_kubernetes(given.withs),
        yes=given.yes,
    )


def _run_class(session: Session, cls: type[FlowSpec], line: str) -> RunHandle:
    parser = _run_parser("cls")
    parser.add_parameters(_names_of(cls))
    given = parser.parse(line)
    params = parser.parameters(given)
    return start(
        session,
        cls=cls,
        wait=given.wait,
        tags=given.tag,
        max_parallel=given.max_parallel,
        params=params,
        fresh=given.fresh,
        kubernetes=with_kubernetes(given.withs),
        yes=given.yes,
    )


def with_kubernetes(withs: Sequence[str]) -> Mapping[str, Any] | None:
    """The arguments of ``--with kubernetes:namespace=team``; None without it. Raises DefinitionError for any other decorator."""
    if not withs:
        return None
    from flowbook.spec.decorators import parse_with

    marks = [parse_with(text) for text in withs]
    other = next((mark.name for mark in marks if mark.name != "kubernetes"), None)
    if other is not None:
        what = f"--with {other} is of flow files; in a notebook only --with kubernetes is there"
        raise DefinitionError(Finding("%flow run", what, "Write the decorator above the step, or its option."))
    return {name: value for mark in marks for name, value in mark.arguments.items()}


def _run_parser(what: str) -> _Parser:
    parser = _Parser("run")
    parser.add_argument(what, nargs="?")
    parser.add_argument("--wait", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--tag", action="append", default=[])
    parser.add_argument("--max-parallel", type=_positive)
    parser.add_argument("--with", dest="withs", action="append", default=[])
    parser.add_argument("--yes", action="store_true")
    parser.add_argument("--flow")
    return parser


def _flow_option(words: Sequence[str]) -> str | None:
    """The value of --flow, before the options of the flow's parameters are known."""
    separate = [after for word, after in itertools.pairwise(words) if word == "--flow"]
    joined = [word.partition("=")[2] for word in words if word.startswith("--flow=")]
    return next(iter(separate + joined), None)


def _class_of(session: Session, words: Sequence[str]) -> type[FlowSpec] | None:
    """The class that `%flow run` names: its first word, the first behind options without a value, or the value of --flow."""
    first = next((word for word in words if word not in ("--wait", "--fresh")), None)
    return session.flow_class(first) or session.flow_class(_flow_option(words))


def _refuse_what_is_no_step(session: Session, words: Sequence[str]) -> None:
    """A file, or a word where there is no step at all. Raises DefinitionError."""
    word = next((word for word in words if word not in ("--wait", "--fresh")), "-")
    if word.endswith(".py"):
        remedy = f"`!flowbook run {word}`, or import its class: `from {Path(word).stem} import …`, then `%flow run CLASS`."
        raise DefinitionError(Finding("%flow run", f"{word} is a file, not a step or a class", remedy))
    if not word.startswith("-") and not session.of_cells(_flow_option(words)).steps:
        raise DefinitionError(Finding("%flow run", f"{word!r} is no step or class of this notebook", session.flows_here(word)))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _resume(session: Session, line: str) -> RunHandle:
    parser = _Parser("resume")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--flow")
    parser.add_argument("--wait", action="store_true")
    flow = session.flow(_flow_option(_split(line, "%flow resume")))
    cls = session.flow_class(flow.name)
    parser.add_parameters(_names_of(cls) if cls is not None else flow.params)
    given = parser.parse(line)
    typed = parser.parameters(given)
    params = typed if cls is not None else {name: CommandLine(text) for name, text in typed.items()}
    return start_resume(session, given.run, given.flow, given.wait, params)


def _names_of(cls: type[FlowSpec]) -> list[str]:
    from flowbook.spec import parameters

    return [parameter.name for parameter in parameters.parameters_of(cls).values()]


def _attach(session: Session, line: str) -> RunHandle:
    parser = _Parser("attach")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--flow")
    parser.add_argument("--wait", action="store_true")
    given = parser.parse(line)
    return start_attach(session, given.run, given.flow, given.wait)


def _at(session: Session, line: str) -> None:
    parser = _Parser("at")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--flow")
    given = parser.parse(line)
    show_at(session, given.run, given.flow)


def _debug(session: Session, line: str) -> None:
    __tracebackhide__ = True  # the traceback of a body that fails is the user's own
    parser = _Parser("debug")
    parser.add_argument("task", nargs="?")
    parser.add_argument("--run")
    parser.add_argument("--flow")
    given = parser.parse(line)
    step, index = parse_task(given.task, "debug") if given.task else (None, None)
    from flowbook.kernel.debug import debug  # the worker's code, which nothing else here needs

    debug(session, session.runs.find(given.run, given.flow), step, index)


def _wait(session: Session, line: str) -> None:
    parser = _Parser("wait")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--flow")
    given = parser.parse(line)
    run = session.runs.find(given.run, given.flow)
    _wait_painting(session, run)
    print(headline(run, time.time()))


# ---- looking ------------------------------------------------------------------------------------------------------------


def _show_bundle(text: str, page: str) -> None:
    from IPython.display import publish_display_data

    publish_display_data({"text/plain": text, "text/html": page})


def _status(session: Session, line: str) -> None:
    parser = _Parser("status")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--flow")
    given = parser.parse(line)
    run = session.runs.find(given.run, given.flow)
    with session.engine.changed:
        text, page = status_text(run), status_html(run)
    _show_bundle(text, page)


def parse_task(text: str, command: str) -> tuple[str, tuple[int, ...] | None]:
    """``train``, ``train[2]``, ``inner[2,5]`` → step and index."""
    found = TASK.match(text)
    if not found:
        raise DefinitionError(Finding(f"%flow {command}", f"{text!r} is not a task", "Write STEP or STEP[2] or STEP[2,5]."))
    return found[1], tuple(int(i) for i in found[2].split(",")) if found[2] else None


def _logs(session: Session, line: str) -> None:
    parser = _Parser("logs")
    parser.add_argument("task", nargs="?")
    parser.add_argument("-f", "--follow", action="store_true")
    parser.add_argument("--run")
    parser.add_argument("--flow")
    given = parser.parse(line)
    run = session.runs.find(given.run, given.flow)
    step, index = parse_task(given.task, "logs") if given.task else (None, None)
    if step is not None:
        must_have(run, step, "%flow logs")
    printed: dict[str, int] = {}
    try:
        with interruptible():
            while True:
                ended = run.view.ended is not None
                for name, text in _texts(session, run, step, index):
                    if len(text) > printed.get(name, 0):
                        if name not in printed:
                            print(f"── {name}")
                        sys.stdout.write(text[printed.get(name, 0) :])
                        printed[name] = len(text)
                sys.stdout.flush()
                if ended or not given.follow:
                    break
                with session.engine.changed:
                    session.engine.changed.wait(0.5)
    except KeyboardInterrupt:
        print(f"\n(no longer following; run {run.id} goes on)")
    if not printed:
        print("nothing was printed" + ("" if run.view.ended else " yet"))


def _texts(session: Session, run: Run, step: str | None, index: tuple[int, ...] | None) -> list[tuple[str, str]]:
    """(task, all that its last attempt printed): from the store when it has ended, else the live tail."""
    found = []
    for task in sorted(run.view.state.tasks, key=lambda task: (task.step, task.index)):
        if (step is not None and task.step != step) or (index is not None and task.index != index):
            continue
        origin, there, attempt = run.view.state.printed_by(task)
        key = layout.output(run.spec.flow, origin, task.step, there, attempt, task.part)
        if session.store.exists(key):
            size = session.store.size(key)
            data = session.store.get_range(key, max(0, size - 1_000_000), size)
            text = (
                f"… the first {size - 1_000_000:,} bytes are in {session.store.where}/{key}\n" if size > 1_000_000 else ""
            ) + data.decode("utf-8", "replace")
        else:
            text = run.view.output.get((task.step, task.index, task.part), ("", 0))[0]
        if text:
            found.append((task_name(task.step, task.index), text if text.endswith("\n") else text + "\n"))
    return found


def _stop(session: Session, line: str) -> None:
    parser = _Parser("stop")
    parser.add_argument("task", nargs="?")
    parser.add_argument("--run")
    parser.add_argument("--flow")
    given = parser.parse(line)
    run = session.runs.find(given.run, given.flow)
    step, index = parse_task(given.task, "stop") if given.task else (None, None)
    print(session.stop(run, step, index))


def _runs(session: Session, line: str) -> None:
    parser = _Parser("runs")
    parser.add_argument("--flow")
    given = parser.parse(line)
    name = session.flow(given.flow).name
    driven = session.engine.driven()
    lines = []
    for run_id in session.runs.ids(name)[-LISTED:]:
        spec = session.runs.read_spec(name, run_id)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(spec.get("started_at", 0)))
        tags = " ".join(run_tags.read(session.store, name, run_id, spec.get("tags", ()))[0])
        lines.append(f"{run_id:>5}  {session.runs.state(name, run_id, driven):<10} {when}  {len(spec['steps'])} steps  {tags}".rstrip())
    print("\n".join(lines) if lines else f"no run of {name} yet")


def _show(session: Session, line: str) -> None:
    parser = _Parser("show")
    parser.add_argument("step", nargs="?")
    parser.add_argument("--pod", action="store_true")
    parser.add_argument("--flow")
    given = parser.parse(line)
    if given.pod:
        print(_pod_of(session, given.step, given.flow))
        return
    if (cls := session.flow_class(given.step or given.flow)) is not None:
        _show_class(session, cls)
        return
    defined = session.existing(given.flow)
    if given.step is None:
        print(f"flow {defined.name}\n{graph.graph_text(session.link(defined).steps)}")
        for p in defined.params.values():
            print(f"parameter {p.name} = {p.default!r}" + (f"  {p.help}" if p.help else ""))
        return
    session._step(defined, given.step)
    linked = session.checked(defined)
    spec, _, notes = session.spec_of(defined, linked=linked)
    step = spec.step(given.step)
    rows = [("name", "kind", "origin", "size", "hash")]
    for made in step.inputs:
        if made.makers:
            rows.append((made.name, "artifact", "step " + " or ".join(made.makers), "", ""))
    for name in step.params:
        rows.append((name, "parameter", repr(preview.shown(spec.params.get(name, {})).get("repr", "")).strip("'"), "", ""))
    for name in step.captures:
        info = spec.captures[name]
        size = size_text(info["size"]) if info["size"] else ""
        rows.append((name, info["kind"], str(info["origin"]), size, info["key"][:10] if info["kind"] != "module" else ""))
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    print(session._summary(defined, linked, given.step))
    print("\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows))
    for name, why in step.unsaved:
        print(f"not saved: {name} ({why})")
    for note in notes:
        print(f"! {note}")


def _pod_of(session: Session, step: str | None, flow: str | None) -> str:
    """See placing.shown_pod. Raises DefinitionError."""
    if step is None:
        raise DefinitionError(Finding("%flow show --pod", "no step is named", f"Usage: {COMMANDS['show'].usage}"))
    if (cls := session.flow_class(flow)) is not None:
        from flowbook.kernel import classes

        name, steps = cls.__name__, classes.program_of(session, cls).steps()
    else:
        defined = session.existing(flow)
        session._step(defined, step)
        name, steps = defined.name, tuple(session.link(defined).steps)
    found = next((each for each in steps if each.name == step), None)
    if found is None:
        known = ", ".join(each.name for each in steps)
        raise DefinitionError(Finding("%flow show --pod", f"{name} has no step {step!r}", f"Steps: {known}."))
    from flowbook.engine.launch.placing import shown_pod

    return shown_pod(name, step, found.options, session.settings.cluster, os.environ)


def _show_class(session: Session, cls: type[FlowSpec]) -> None:
    from flowbook.kernel import classes
    from flowbook.spec import schedules

    program = classes.program_of(session, cls)
    print(f"flow {program.name}\n{graph.graph_text(program.steps())}")
    for parameter in program.parameters.values():
        print(f"parameter --{parameter.name}" + (f"  {parameter.help}" if parameter.help else ""))
    for told in schedules.describe(cls):
        print(told)


def _check(session: Session, line: str) -> None:
    parser = _Parser("check")
    parser.add_argument("cls", nargs="?")
    parser.add_argument("--serial", action="store_true")
    parser.add_argument("--flow")
    given = parser.parse(line)
    if (cls := session.flow_class(given.cls or given.flow)) is not None:
        from flowbook.kernel import classes

        print(f"flow {cls.__name__}: {len(classes.program_of(session, cls).graph.nodes)} steps, no error")
        return
    if given.cls is not None:
        raise DefinitionError(
            Finding("%flow check", f"{given.cls!r} is no FlowSpec class of this notebook", "Run the cell that defines it.")
        )
    defined = session.existing(given.flow)
    linked = session.checked(defined)
    _, _, notes = session.spec_of(defined, linked=linked)
    for note in [*session.warnings(defined, linked), *notes]:
        print(f"! {note}")
    print(f"flow {defined.name}: {len(linked.steps)} steps, no error")
    if given.serial:
        _check_serial(session, given.flow)


def _check_serial(session: Session, flow: str | None) -> None:
    """Run the flow, then read it serially in one plain process, and compare every artifact."""
    run, notes = session.run(flow=flow)
    for note in notes:
        print(note, file=sys.stderr)
    painter = CellPainter(session, run, raises=True)
    painter.start()
    _wait_painting(session, run, painter)
    order = {
        "store": session.store.describe(),
        "flow": run.spec.flow,
        "run": run.id,
        "cwd": str(session.folder),
        "sys_path": list(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flowbook.worker", "--serial"],
        input=json.dumps(order).encode(),
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    try:
        report = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        tail = clean_text(done.stderr.decode("utf-8", "replace")).strip().splitlines()[-15:]
        raise FlowbookError("the serial reading failed:\n" + "\n".join(tail)) from None
    different = report.get("different", [])
    if report.get("error"):
        raise FlowbookError(f"the serial reading failed: {report['error']}")
    for item in different:
        print(f"✗ {item['task']}.{item['name']}: the flow made {item['flow']}, the serial reading {item['serial']}")
    for item in report.get("missing", []):
        print(f"✗ {item if isinstance(item, str) else item.get('task', '') + '.' + item.get('name', '')}: only one of the two made it")
    equal = len(report.get("equal", []))
    if different or report.get("missing"):
        raise FlowbookError(
            f"the flow and the serial reading differ in {len(different) + len(report.get('missing', []))} artifacts; {equal} are equal"
        )
    print(f"the flow and the serial reading are equal: {equal} artifacts")


def _graph(session: Session, line: str) -> None:
    parser = _Parser("graph")
    parser.add_argument("cls", nargs="?")
    parser.add_argument("--flow")
    given = parser.parse(line)
    cls = session.flow_class(given.cls or given.flow)
    if given.cls is not None and cls is None:
        raise DefinitionError(
            Finding("%flow graph", f"{given.cls!r} is no FlowSpec class of this notebook", "Run the cell that defines it.")
        )
    if cls is not None:
        from flowbook.kernel import classes

        defined, steps = session.flow(cls.__name__), classes.program_of(session, cls).steps()
    else:
        defined = session.existing(given.flow)
        steps = session.link(defined).steps
    states = None
    if defined.last is not None:
        from flowbook.kernel.display import row_state, rows

        states = {r["step"].name: row_state(r, defined.last.view.ended) for r in rows(defined.last, time.time())}
    _show_bundle(graph.graph_text(steps), graph.graph_svg(steps, states))


def _artifacts(session: Session, line: str) -> None:
    parser = _Parser("artifacts")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--flow")
    given = parser.parse(line)
    run = session.runs.find(given.run, given.flow)
    rows: list[tuple[str, str, str, str, str]] = []
    sizes: dict[tuple[str, str], int] = {}
    for task, state in sorted(run.view.state.tasks.items(), key=lambda x: (x[0].step, x[0].index)):
        if state.state != "succeeded" or task.part != "body":
            continue
        commit = session.commit(run, task.step, task.index)
        for name, entry in commit["artifacts"].items():
            if entry.get("kind") == "module" or entry.get("definition"):
                continue
            size = entry.get("size", 0)
            sizes[task.step, name] = sizes.get((task.step, name), 0) + size
            entry = preview.shown(entry)
            shape = str(tuple(entry["shape"])) if entry.get("shape") else ""
            rows.append(
                (task_name(task.step, task.index), name, f"{entry.get('type', '')}{shape}", size_text(size), entry.get("repr", "")[:80])
            )
        for name, why in commit.get("unsaved", {}).items():
            rows.append((task_name(task.step, task.index), name, "not saved", "", why[:80]))
    if not rows:
        print(f"run {run.id} has made no artifact" + ("" if run.view.ended else " yet"))
        return
    widths = [max(len(r[i]) for r in rows) for i in range(5)]
    text = "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows[:200])
    if len(rows) > 200:
        text += f"\n… {len(rows) - 200} more"
    text += largest(sizes)
    body = "".join("<tr>" + "".join(f"<td style='text-align:left'>{html.escape(c)}</td>" for c in r) + "</tr>" for r in rows[:200])
    head = "".join(f"<th style='text-align:left'>{c}</th>" for c in ("task", "name", "type", "size", "value"))
    note = f"<pre>{html.escape(largest(sizes).strip())}</pre>" if largest(sizes) else ""
    _show_bundle(text, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}")


def _drop(session: Session, line: str) -> None:
    parser = _Parser("drop")
    parser.add_argument("step")
    parser.add_argument("--flow")
    given = parser.parse(line)
    print(session.drop(given.step, given.flow))


def _defaults(session: Session, line: str) -> None:
    print(session.set_defaults(line))


def _gc(session: Session, line: str) -> None:
    parser = _Parser("gc")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--keep", type=_positive)
    parser.add_argument("--all-flows", action="store_true")
    parser.add_argument("--flow")
    given = parser.parse(line)
    from flowbook.kernel.housekeeping import gc

    gc(session, flow=given.flow, keep=given.keep, all_flows=given.all_flows, dry_run=given.dry_run)


def _doctor(session: Session, line: str) -> None:
    parser = _Parser("doctor")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--pod", action="store_true")
    given = parser.parse(line)
    from flowbook.kernel.doctor import doctor

    doctor(session, verify=given.verify, pod=given.pod)


def _export(session: Session, line: str) -> None:
    parser = _Parser("export")
    parser.add_argument("file")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--class", dest="class_name")
    parser.add_argument("--flow")
    given = parser.parse(line)
    from flowbook.kernel.exporting import export

    print("\n".join(export(session, given.file, flow=given.flow, class_name=given.class_name, check=given.check)))


def _card(session: Session, line: str) -> None:
    parser = _Parser("card")
    parser.add_argument("path", nargs="?")
    parser.add_argument("--id")
    parser.add_argument("--flow")
    given = parser.parse(line)
    from flowbook.kernel.cards import show

    _show_bundle(*show(session, given.path, id=given.id, flow=given.flow))


def _report(session: Session, line: str) -> None:
    parser = _Parser("report")
    parser.add_argument("run", nargs="?")
    parser.add_argument("-o", "--out")
    parser.add_argument("--flow")
    given = parser.parse(line)
    from flowbook.kernel.cards import write

    print(f"written: {write(session, given.out, run_id=given.run, flow=given.flow)}")


COMMANDS: dict[str, Command] = {
    "run": Command(
        "%flow run [STEP | CLASS] [--with kubernetes] [--fresh] [--wait] [--tag T] [--max-parallel N] [--yes] [--flow F] [--PARAM VALUE …]",
        "run the flow, STEP and what it needs, or a class",
        _run,
    ),
    "wait": Command("%flow wait [RUN] [--flow F]", "wait for a run to end", _wait),
    "status": Command("%flow status [RUN] [--flow F]", "how a run stands", _status),
    "logs": Command("%flow logs [STEP | STEP[i]] [-f] [--run RUN] [--flow F]", "what steps printed; -f follows", _logs),
    "stop": Command("%flow stop [STEP | STEP[i]] [--run RUN] [--flow F]", "stop a run, a step or one task", _stop),
    "resume": Command(
        "%flow resume [RUN] [--wait] [--flow F] [--PARAM VALUE …]", "run what a failed or stopped run did not finish", _resume
    ),
    "attach": Command("%flow attach [RUN] [--wait] [--flow F]", "take up a run after a restart: its display and names", _attach),
    "debug": Command("%flow debug [STEP | STEP[i]] [--run RUN] [--flow F]", "run a task again in this kernel, for `%debug`", _debug),
    "at": Command("%flow at [RUN] [--flow F]", "let the names be those of an earlier run; alone: of the newest", _at),
    "runs": Command("%flow runs [--flow F]", "the last runs of this flow", _runs),
    "show": Command("%flow show [STEP] [--pod] [--flow F]", "the flow; or what a step reads, captures and saves; or its pod", _show),
    "check": Command("%flow check [--serial] [--flow F]", "what is wrong; --serial runs the cells plainly too and compares", _check),
    "graph": Command("%flow graph [--flow F]", "draw the flow", _graph),
    "artifacts": Command("%flow artifacts [RUN] [--flow F]", "what a run made, with sizes", _artifacts),
    "card": Command(
        "%flow card [RUN | [RUN/]STEP[/TASK]] [--id ID] [--flow F]", "the cards of a step or a task of any run, or the card of a run", _card
    ),
    "report": Command("%flow report [RUN] [-o FILE] [--flow F]", "a whole run as one HTML file: graph, steps, errors, cards", _report),
    "export": Command(
        "%flow export FILE.py [--check] [--class NAME] [--flow F]",
        "write the class that is the same flow; --check: is FILE.py still that?",
        _export,
    ),
    "drop": Command("%flow drop STEP [--flow F]", "forget a step", _drop),
    "defaults": Command("%flow defaults [OPTIONS]", "options for all steps that do not set them", _defaults),
    "gc": Command("%flow gc [--dry-run] [--keep N] [--all-flows] [--flow F]", "remove old runs and what only they used", _gc),
    "doctor": Command(
        "%flow doctor [--verify] [--pod]",
        "whether all that flowbook needs works here; --verify reads every result, --pod tries a pod",
        _doctor,
    ),
}


def commands_help() -> str:
    width = max(len(c.usage) for c in COMMANDS.values())
    return "\n".join(f"  {c.usage:<{min(width, 60)}}  {c.help}" for c in COMMANDS.values())


@magics_class
class FlowMagics(Magics):
    """The magics. `%config FlowMagics.autorun = True` runs every step when its cell is run."""

    autorun = Bool(False, help="Run a step, with what it needs, as soon as its cell is run.").tag(config=True)

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self._session = session
        self.autorun = session.settings.autorun

    @no_var_expand
    @cell_magic
    def flowstep(self, line: str, cell: str) -> Any:
        lines = self._session.define_step(line, cell)
        for note in lines:
            print(note)
        name = lines[-1].split()[1].rstrip(":") if lines else ""
        defined = next((f for f in self._session.flows.values() if name in f.steps), None)
        if defined is not None and (self.autorun or defined.steps[name].options.run):
            start(self._session, step=name, flow=defined.name, wait=False, tags=(), max_parallel=None, params={})

    @no_var_expand
    @cell_magic
    def flowparams(self, line: str, cell: str) -> None:
        """Define parameters: one `name: type = value  # help` a line. `%flow run --name VALUE` overrides."""
        for note in self._session.define_params(cell):
            print(note)

    @no_var_expand
    @cell_magic
    def flowsetup(self, line: str, cell: str) -> None:
        """Run a cell here and at the start of every task: seeds, rcParams, environment."""
        if line.strip():
            raise DefinitionError(Finding("%%flowsetup", f"it takes no options, and {line.strip()!r} is given", "Remove it."))
        forget = self._session.define_setup(cell)
        ran = self.shell.run_cell(cell, store_history=False, silent=False)
        if not ran.success:
            forget()  # else every task of every run would fail in it
        ran.raise_error()

    @no_var_expand
    @line_magic
    def flow(self, line: str) -> Any:
        __tracebackhide__ = True
        name, _, rest = line.strip().partition(" ")
        if not name or name in ("help", "?", "--help"):
            print("%flow COMMAND, each also a method of the object `flow`\n" + commands_help())
            return None
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"; did you mean `%flow {near[0]}`?" if near else ""
            raise DefinitionError(Finding("%flow", f"no command {name!r}{hint}", f"Commands: {', '.join(COMMANDS)}."))
        rest = rest.strip()
        if rest.endswith("?") or rest in ("--help", "-h"):
            print(f"{COMMANDS[name].usage}\n  {COMMANDS[name].help}")
            return None
        return COMMANDS[name].call(self._session, rest)


FlowMagics.flow.__doc__ = "Run and watch flows.\n\n" + commands_help()
FlowMagics.flowstep.__doc__ = "Define a step: `%%flowstep NAME [options]`, more options on `#|` lines below.\n\n" + options.help_text()


def comment_form(lines: list[str]) -> list[str]:
    """`#| flowstep NAME …` as a cell's first line is `%%flowstep NAME …`, likewise flowparams and flowsetup; `%flow run?` is help."""
    if lines and (found := re.match(r"#\|\s*(flowstep|flowparams|flowsetup)\b(.*)", lines[0])):
        return [f"%%{found[1]}{found[2]}\n", *lines[1:]]
    # `%flow run?` would be taken by IPython for help on an object of that name.
    return [re.sub(r"^(%flow\s+\w+)\s*\?+\s*$", r"\1 --help", line) for line in lines]


def complete(session: Session, text_before: str) -> list[str]:
    """What may follow on a line of `%flow` or `%%flowstep`; pure, so that it can be tested without a front end."""
    words = text_before.split()
    word = "" if text_before.endswith(" ") or not words else words[-1]
    before = words if not word else words[:-1]
    steps = [s for f in session.flows.values() for s in f.steps]
    if before[:1] == ["%flow"]:
        if len(before) == 1:
            found = list(COMMANDS)
        else:
            usage = COMMANDS[before[1]].usage if before[1] in COMMANDS else ""
            found = list(re.findall(r"--[a-z-]+|(?<=\[)-[fo]", usage))
            found += steps if "STEP" in usage else []
            found += session.runs.ids(session.flow().name)[-LISTED:] if "RUN" in usage else []
            found += [f"--{p}" for f in session.flows.values() for p in f.params] if before[1] in ("run", "resume") else []
            found += session.classes() if before[1] == "run" else []
    elif before[:1] in (["%%flowstep"], ["#|"]):
        after = before[-1] if before else ""
        found = steps if after in ("--join", "--after") else [f"--{o.name.lstrip('-')}" for o in options.OPTIONS]
    else:
        return []
    return sorted(f for f in found if f.startswith(word))


def register(shell: Any, session: Session) -> None:
    """Hang the session on a shell: magics, events, the scan, the comment form, completion."""
    from IPython.core.completer import SimpleCompletion, context_matcher

    shell.register_magics(FlowMagics(shell, session))
    shell.events.register("pre_run_cell", session.cells.record)
    shell.ast_transformers.append(Scan(session.names))
    shell.input_transformers_cleanup.append(comment_form)
    if "flow" not in shell.user_ns:
        shell.user_ns["flow"] = flow_object
        shell.user_ns_hidden["flow"] = flow_object

    @context_matcher()
    def flow_matcher(context: Any) -> dict[str, Any]:
        line = context.full_text.split("\n")[context.cursor_line][: context.cursor_position]
        token = context.token
        found = complete(session, line) if line.lstrip().startswith(("%flow", "%%flow", "#|")) else []
        # The completer replaces `token`, which may be the last part of our word (it splits at "-").
        word = line.split(" ")[-1]
        cut = len(word) - len(token) if word.endswith(token) else 0
        return {"completions": [SimpleCompletion(text=f[cut:], type="flow") for f in found], "suppress": bool(found)}

    shell.Completer.custom_matchers.append(flow_matcher)
