"""What a kernel knows: the flows as their cells define them, and the runs it started or took up.

From cells to a run in four moves: `define_*` keeps a cell, `link` orders and links the steps (pure, in `spec`), `spec_of`
captures and writes the spec, `run` tells the engine its key. Every magic and its Python twin ends in a method of Session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import glob
import hashlib
import json
import os
import re
import secrets
import sys
import time
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook._version import __version__
from flowbook.errors import ArtifactNotLoaded, DefinitionError, EngineError, Finding, FlowbookError, RunStopped
from flowbook.kernel import capture, keys
from flowbook.kernel.cells import Cells, Ran, flow_name, is_history, names_behind, notebook_path
from flowbook.kernel.engine import Engine, environment
from flowbook.kernel.names import Names
from flowbook.kernel.runs import Run as Run
from flowbook.kernel.runs import Runs
from flowbook.settings import Settings, load_settings
from flowbook.spec import graph, options
from flowbook.spec.body import Body, read_body
from flowbook.spec.flow import Options, Spec, Step, task_name
from flowbook.store import codec, layout, preview, results
from flowbook.store.base import Store, open_store
from flowbook.store.numbers import take_number

if TYPE_CHECKING:  # at run time they are imported for the first class: `%load_ext` need not wait for them
    from flowbook.spec.flowspec import FlowSpec

RESERVED_PARAMS = frozenset(
    [
        "step",
        "wait",
        "tag",
        "max_parallel",
        "flow",
        "fresh",
        "with",
        "detach",
        "run",
        "help",
        "no_cache",
        "cache_for",
        "cache_key",
        "yes",
        "keep_warm",
        "run_id",
        "user",
    ]
)


@dataclass
class StepCell:
    """A step as a cell defines it. `first` keeps its place when it is defined again."""

    name: str
    ran: Ran
    first: int
    source: str
    options: Options
    given: Mapping[str, Any]
    body: Body
    version: int = 1

    @property
    def filename(self) -> str:
        return f"<flowstep {self.name}>" if self.version == 1 else f"<flowstep {self.name} {self.version}>"


@dataclass
class Param:
    name: str
    default: Any
    kind: type | None
    help: str
    label: str


@dataclass
class SetupCell:
    ran: Ran
    source: str
    body: Body
    filename: str


@dataclass
class FlowDef:
    """One flow of the notebook: its cells in the order of first definition."""

    name: str
    steps: dict[str, StepCell] = field(default_factory=dict)
    params: dict[str, Param] = field(default_factory=dict)
    setups: list[SetupCell] = field(default_factory=list)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)  # started or attached in this kernel
    at: Run | None = None  # `%flow at`: the run whose values the names give; None: the last of `runs`
    past: dict[str, Step] = field(default_factory=dict)  # steps of an attached run: they stand for cells that have not run here

    @property
    def last(self) -> Run | None:
        return self.runs[-1] if self.runs else None


class Session:
    """The kernel side of flowbook in one shell."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.cells = Cells(shell)
        path = notebook_path(shell)
        self.folder = path.parent if path and path.parent.is_dir() else Path.cwd()
        self.settings: Settings = load_settings(self.folder, os.environ)
        preview.use(self.settings.previews)
        self.flows: dict[str, FlowDef] = {}
        self.store: Store = open_store(self.settings.place)
        self.engine = Engine(self.store, self._engine_environment(), str(path or ""), self.option)
        self.engine.cluster = self.settings.cluster
        self.runs = Runs(self)
        self.names = Names(self)
        self.reader_resolve: dict[str, Any] = {}
        self.life = secrets.token_hex(8)
        self._defined = 0
        self._param_cells: dict[str, str | None] = {}  # parameter → id of the cell that defines it
        self._order_warnings: list[str] = []  # of the last check

    # ---- definition -------------------------------------------------------------------------------------------------

    def flow(self, name: str | None = None) -> FlowDef:
        """The flow of that name, else the only one there is, else the notebook's own."""
        if name is None:
            name = self.own
            used = [f for f in self.flows.values() if f.steps or f.runs]
            if len(used) == 1:
                return used[0]
        if not layout.FLOW_NAME.match(name):
            raise DefinitionError(Finding("--flow", f"{name!r} is not a flow's name", "Use letters, digits, _ . - (at most 100)."))
        return self.flows.setdefault(name, FlowDef(name))

    @property
    def own(self) -> str:
        """The name of the notebook's own flow."""
        return self.settings.flow or flow_name(self.shell)

    def of_cells(self, name: str | None = None) -> FlowDef:
        """Like `flow`, for cells that define something: a flow of which only a class was run is not theirs, unless it is named."""
        if name is None:
            used = [f for f in self.flows.values() if f.steps or any(not run.of_class for run in f.runs)]
            name = used[0].name if len(used) == 1 else self.own
        return self.flow(name)

    def option(self, flow: str) -> str:
        """What a hint appends to a command so that it means that flow: `` --flow NAME``, or "" for the notebook's own."""
        return "" if flow == self.own == self.flow(None).name else f" --flow {flow}"

    def starts(self, flow: FlowDef) -> str:
        """What a hint appends to `%flow run` so that it starts that flow."""
        return f" {flow.name}" if self.flow_class(flow.name) is not None else self.option(flow.name)

    def existing(self, name: str | None) -> FlowDef:
        """Like `of_cells`, but it must have a step."""
        found = self.of_cells(name) if name is None or name in self.flows else None
        if found is None or not found.steps:
            raise DefinitionError(
                Finding("", f"no flow {name!r} in this notebook" if name else "no step is defined yet", self.flows_here(name))
            )
        return found

    def flows_here(self, meant: str | None = None) -> str:
        """Which flows this notebook has, and how each is run; the one whose name is nearest to `meant` comes first."""
        classes = self.classes()
        named = [f.name for f in self.flows.values() if f.steps]
        near = nearest(meant, [*classes, *named])
        told = [f"{name} (a class): `%flow run {name}`" for name in classes]
        told += [f"{name}: `%flow run{self.option(name)}`" for name in named if name not in classes]
        here = f"Flows here: {'; '.join(told)}." if told else "A cell that begins with `%%flowstep NAME` defines one."
        return f"Did you mean {near}? {here}" if near else here

    def classes(self) -> list[str]:
        """The names of the FlowSpec classes of this notebook that have steps."""
        space = self.shell.user_ns
        found = [(name, self.flow_class(name)) for name in space if not name.startswith("_") and isinstance(space[name], type)]
        return [name for name, cls in found if cls is not None and _has_steps(cls)]

    def define_step(self, line: str, cell: str) -> list[str]:
        """Define or redefine the step of the cell that runs now. Returns what to print, one line each."""
        ran = self._cell_now(cell)
        ran.plain = False
        source, option_lines = split_cell(ran.source, cell)
        refuse_late_options(source, ran.label)
        name, given = options.parse_step_line(line, option_lines, label=ran.label)
        flow = self.of_cells(given.get("flow"))
        effective = options.make_options(options.merge(flow.defaults, given), label=ran.label)
        body = read_body(source, label=ran.label)
        if body.refusals:
            raise DefinitionError(*body.refusals)
        notes = self._place_step(flow, name, ran)
        old = flow.steps.get(name)
        self._defined += 1
        first, version = (old.first, old.version + 1) if old else (self._defined, 1)
        if old is not None:
            ran = dataclasses.replace(ran, first=min(old.ran.first, ran.first)) if not ran.cell_id else ran
            ran.plain = False
        try:
            flow.steps[name] = StepCell(name, ran, first, source, effective, given, body, version)
            self._refuse_wrong_names(flow, name)
        except FlowbookError:
            if old is None:
                del flow.steps[name]
            else:
                flow.steps[name] = old
            raise
        linked = self.link(flow)
        notes += self.names.bind(flow, linked)
        self.warm(source)
        return [*notes, self._summary(flow, linked, name)]

    def define_params(self, cell: str) -> list[str]:
        """`%%flowparams`: each assigned name is a parameter; the comment behind it its help."""
        ran = self._cell_now(cell)
        ran.plain = False
        source, _option_lines = split_cell(ran.source, cell)
        flow = self.of_cells()
        found = read_params(source, ran.label, self.shell.user_ns)
        clash = [p for p in found if p.name in flow.steps]
        if clash:
            raise DefinitionError(Finding(ran.label, f"parameter `{clash[0].name}` is named like a step", "Rename one of them."))
        for old in [p for p in flow.params.values() if p.label == ran.label or self._same_cell(p, ran)]:
            del flow.params[old.name]
        for param in found:
            flow.params[param.name] = param
            self.names.bind_param(param.name, param.default)
        self._param_cells |= {p.name: ran.cell_id for p in found}
        if flow.steps:
            self.names.bind(flow, self.link(flow))
        return ["parameters: " + ", ".join(f"{p.name} = {p.default!r}" for p in found)] if found else ["no parameters"]

    def _same_cell(self, param: Param, ran: Ran) -> bool:
        return ran.cell_id is not None and self._param_cells.get(param.name) == ran.cell_id

    def define_setup(self, cell: str) -> Callable[[], None]:
        """`%%flowsetup`: keep the cell for every worker; the magic then runs it in the kernel. Gives what forgets it again, if it fails."""
        ran = self._cell_now(cell)
        ran.plain = False
        source, _ = split_cell(ran.source, cell)
        flow = self.of_cells()
        body = read_body(source, label=ran.label)
        if body.refusals:
            raise DefinitionError(*body.refusals)
        kept = [
            s
            for s in flow.setups
            if not (ran.cell_id and s.ran.cell_id == ran.cell_id) and not (not ran.cell_id and s.source.strip() == source.strip())
        ]
        before = flow.setups
        flow.setups = [*kept, SetupCell(ran, source, body, f"<flowsetup {ran.count}>")]

        def forget() -> None:
            flow.setups = before

        return forget

    def warm(self, source: str = "") -> None:
        """Let the engine get a process ready that has imported what a cell imports. Nothing is waited for."""
        modules = capture.imports_beforehand(capture.Captured(), (), [source]) if source else ()
        if modules or not source:
            self.engine.warm(environment(), os.getcwd(), list(sys.path), modules)

    def drop(self, name: str, flow_name: str | None = None) -> str:
        """Forget a step: its names, too, unless another step makes them."""
        flow = self.existing(flow_name)
        self._step(flow, name)
        del flow.steps[name]
        flow.past.pop(name, None)
        self.names.bind(flow, self.link(flow))
        return f"step {name} is dropped; its results stay in the store"

    def set_defaults(self, line: str) -> str:
        flow = self.of_cells()
        given = options.parse_defaults(line)
        flow.defaults = given
        for step in flow.steps.values():
            step.options = options.make_options(options.merge(given, step.given), label=step.ran.label)
        return "defaults: " + (line.strip() or "none")

    def _cell_now(self, cell: str) -> Ran:
        now = self.cells.now
        if now is not None and cell.strip() in now.source:
            return now
        # Called from code (get_ipython().run_cell_magic): there is no raw cell of its own.
        count = self.shell.execution_count
        return Ran(len(self.cells.ran) + 1, len(self.cells.ran) + 1, None, count, f"%%flowstep\n{cell}", cell, plain=False)

    def _place_step(self, flow: FlowDef, name: str, ran: Ran) -> list[str]:
        """One cell defines one step; the same name from another living cell is refused."""
        notes = []
        order = self.cells.file_order()
        for other in list(flow.steps.values()):
            same_cell = ran.cell_id is not None and other.ran.cell_id == ran.cell_id
            if same_cell and other.name != name:
                del flow.steps[other.name]
                flow.past.pop(other.name, None)
                notes.append(f"step {other.name} is now called {name}")
            elif other.name == name and not same_cell and ran.cell_id and other.ran.cell_id in order:
                raise DefinitionError(
                    Finding(
                        ran.label,
                        f"step {name!r} is already defined by {other.ran.label}, which still stands in the notebook",
                        f"Give this one another name, or delete that cell and `%flow drop {name}`.",
                    )
                )
        return notes + self._drop_deleted(flow, order)

    def _drop_deleted(self, flow: FlowDef, order: dict[str, int]) -> list[str]:
        gone = [step.name for step in flow.steps.values() if self.cells.deleted(step.ran.cell_id, order)]
        for name in gone:
            del flow.steps[name]
            flow.past.pop(name, None)
        return [f"step {name} is dropped: its cell was deleted" for name in gone]

    def _refuse_wrong_names(self, flow: FlowDef, name: str) -> None:
        if name in flow.params:
            raise DefinitionError(Finding(flow.steps[name].ran.label, f"step {name!r} is named like a parameter", "Rename one of them."))

    def _summary(self, flow: FlowDef, linked: graph.Linked, name: str) -> str:
        """The one line that Shift-Enter prints: reads, captures, fan-out, saves; and what is wrong already."""
        step = next((s for s in linked.steps if s.name == name), None)
        if step is None:
            return f"step {name}: " + "; ".join(str(f.what) for f in linked.findings)
        reads: dict[str, list[str]] = {}
        for made in (*step.plan_inputs, *step.inputs):
            if made.makers and made.name not in reads.setdefault(made.makers[0], []):
                reads[made.makers[0]].append(made.name)
        parts = [f"{', '.join(names)} from {maker}" for maker, names in reads.items()]
        said = [f"reads {'; '.join(parts)}"] if parts else []
        if step.params:
            said.append(f"parameters {', '.join(step.params)}")
        captured = [n for n in step.captures if not isinstance(self.shell.user_ns.get(n), types.ModuleType)]
        if captured:
            said.append(f"captures {', '.join(captured)}")
        if step.options.join:
            said.append(f"joins {', '.join(step.options.join)}")
        if step.options.foreach:
            said.append(f"one task for each {step.options.foreach.target} in {step.options.foreach.expr}")
        elif step.scope:
            said.append(f"one task for each task of {step.scope[-1]}")
        if step.options.when:
            said.append(f"only if {step.options.when}")
        saved = [n for n in step.saves if n not in flow.steps[name].body.others]
        said.append(f"saves {', '.join(saved)}" if saved else "saves nothing")
        own = [f for f in linked.findings if name in f.where.split() or flow.steps[name].ran.label in f.where]
        wrong = "".join(f"\n  ! {f.what}" + (f". {f.remedy}" if f.remedy else "") for f in own)
        return f"step {name}: " + " · ".join(said) + wrong

    # ---- linking ----------------------------------------------------------------------------------------------------

    def plain(self) -> dict[str, str]:
        """Plain names of the kernel → where they were set; what the flow made or bound is not among them."""
        hidden = self.shell.user_ns_hidden
        space = self.shell.user_ns
        names = [n for n in space if not n.startswith("_") and n not in hidden and not self.names.is_ours(n)]
        names += [n for n in space if n.startswith("_") and not n.startswith("__") and n not in hidden and not is_history(n)]
        return dict.fromkeys([*names, *self.names.mine], "")

    def ordered(self, flow: FlowDef, by_file: bool) -> list[StepCell]:
        order = self.cells.file_order() if by_file else {}
        if by_file and all(step.ran.cell_id in order for step in flow.steps.values()):
            return sorted(flow.steps.values(), key=lambda s: order[s.ran.cell_id or ""])
        return sorted(flow.steps.values(), key=lambda s: s.first)

    def link(self, flow: FlowDef, *, by_file: bool = True) -> graph.Linked:
        self.names.give_back()
        self.names.see_mine()
        plain = self.plain()
        space = {**self.shell.user_ns, **self.names.mine}
        definitions = {
            n for n in plain if isinstance(space.get(n), (types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType))
        }
        made = {n for s in flow.steps.values() for n in (*s.body.makes, *s.body.others, *s.body.changes)} | set(flow.params)
        for step in flow.steps.values():
            if step.options.foreach:
                made |= set(step.options.foreach.names)
        cells = [self._graph_cell(step, plain, made) for step in self.ordered(flow, by_file)]
        setup_names = {n for s in flow.setups for n in (*s.body.makes, *s.body.others)}
        return graph.link(cells, plain=_Origins(plain, self.cells), params=set(flow.params), modules=definitions, setup_names=setup_names)

    def _graph_cell(self, step: StepCell, plain: Mapping[str, str], made: set[str]) -> graph.Cell:
        foreach = step.options.foreach
        body = self._with_function_reads(step.body, plain, made)
        return graph.Cell(
            name=step.name,
            source=step.source,
            filename=step.filename,
            label=step.ran.label,
            options=step.options,
            body=body,
            foreach_body=self._expression(foreach.expr, step, plain, made) if foreach else None,
            when_body=self._expression(step.options.when, step, plain, made) if step.options.when else None,
        )

    def _expression(self, expr: str, step: StepCell, plain: Mapping[str, str], made: set[str]) -> Body:
        return self._with_function_reads(read_body(expr, label=step.ran.label, expression=True), plain, made)

    def _with_function_reads(self, body: Body, plain: Mapping[str, str], made: set[str]) -> Body:
        """A captured function that uses a name the flow makes reads it for the step that calls the function."""
        used = {n for n in body.reads if n in plain and n not in made}
        extra = (names_behind(used, self.shell.user_ns, self.names.mine) - used) & made - set(body.reads)
        return dataclasses.replace(body, reads={**body.reads, **dict.fromkeys(extra, False)}) if extra else body

    def checked(self, flow: FlowDef) -> graph.Linked:
        """The linked flow without a finding, or DefinitionError with all of them."""
        linked = self.link(flow)
        findings = list(linked.findings) or [*self._two_orders(flow, linked), *self._changed_between(flow, linked)]
        if findings:
            raise DefinitionError(*findings)
        return linked

    def _two_orders(self, flow: FlowDef, linked: graph.Linked) -> list[Finding]:
        by_file, by_definition = self.ordered(flow, True), self.ordered(flow, False)
        if [s.name for s in by_file] == [s.name for s in by_definition]:
            return []
        other = self.link(flow, by_file=False)
        if set(graph.edges(linked.steps)) == set(graph.edges(other.steps)):
            return []
        return [
            Finding(
                f"flow {flow.name}",
                "the order of the cells in the notebook and the order in which they were run give different flows:\n"
                f"      as they stand: {' · '.join(s.name for s in by_file)}\n      as they ran:   {' · '.join(s.name for s in by_definition)}",
                "Save the notebook if a cell was moved, and run the step cells again from top to bottom (or restart the kernel).",
            )
        ]

    def _changed_between(self, flow: FlowDef, linked: graph.Linked) -> list[Finding]:
        """Plain cells that rebind a captured name below its step, or an artifact between its maker and its reader."""
        order = self.cells.file_order()
        findings: list[Finding] = []
        self._order_warnings = []
        for step in linked.steps:
            here = self.cells.place(flow.steps[step.name].ran, order)
            for name in step.captures:
                binder = self.cells.last_binder(name)
                place = self.cells.place(binder, order)
                if binder is None or not place.below(here):
                    continue
                what = f"`{name}` was last set by {binder.label}, which stands below step {step.name} ({step.label})"
                if place.known_with(here):
                    findings.append(
                        Finding(
                            step.label,
                            what,
                            f"Read serially the step sees an older `{name}`: move that cell up, or use another name in it.",
                        )
                    )
                else:
                    self._order_warnings.append(f"{step.label}: {what}; the step gets the present value")
            for made in step.inputs:
                if not made.makers:
                    continue
                maker = self.cells.place(flow.steps[made.makers[0]].ran, order)
                for cell in self.cells.ran:
                    place = self.cells.place(cell, order)
                    known = place.known_with(here) and place.known_with(maker)
                    if cell.plain and known and cell.binds(made.name) and place.below(maker) and here.below(place):
                        findings.append(
                            Finding(
                                cell.label,
                                f"this plain cell sets `{made.name}` between step {made.makers[0]}, which makes it, and step {step.name}, which reads it",
                                "Steps do not see what plain cells do to an artifact: make the cell a step, or use another name.",
                            )
                        )
        return findings

    def warnings(self, flow: FlowDef, linked: graph.Linked) -> list[str]:
        found = [str(w) for w in linked.warnings] + self._order_warnings
        seeding = next((c for c in self.cells.ran if c.plain and c.body is not None and c.body.seeds_random), None)
        if seeding is not None:
            drawing = [s.name for s in flow.steps.values() if s.body.calls_random]
            if drawing:
                found.append(
                    f"{seeding.label} seeds a random generator, but step {drawing[0]} runs in a process of its own: put the seed into a %%flowsetup cell"
                )
        return found + self._made_from_artifacts(flow, linked)

    def _made_from_artifacts(self, flow: FlowDef, linked: graph.Linked) -> list[str]:
        """Captured names that a plain cell computed from what the flow makes: read serially, they would be computed anew in each run."""
        made = {name: step.name for step in linked.steps for name in step.saves if not step.scope}
        found = []
        for name in dict.fromkeys(name for step in linked.steps for name in step.captures):
            cell = self.cells.last_binder(name)
            body = cell.body if cell is not None and not isinstance(self.shell.user_ns.get(name), _DEFINITIONS) else None
            used = [read for read in body.immediate if read in made] if cell is not None and body is not None else []
            if cell is not None and used:
                reader = next(step for step in linked.steps if name in step.captures)
                found.append(
                    f"step {reader.name} reads `{name}`, which the plain cell {cell.label} computed from `{used[0]}` of step {made[used[0]]}; "
                    f"a run does not compute it anew. Make that cell a step"
                )
        return found

    # ---- the spec ---------------------------------------------------------------------------------------------------

    def spec_of(
        self,
        flow: FlowDef,
        *,
        target: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        max_parallel: int | None = None,
        origin: Run | None = None,
        fresh: bool = False,
        linked: graph.Linked | None = None,
    ) -> tuple[Spec, dict[str, Any], list[str]]:
        """Capture what the steps read and write `run.json`. Returns the spec, the parameters' values, and warnings."""
        linked = linked or self.checked(flow)
        life = (origin.spec.life if origin else "") or self.life
        notes = self.warnings(flow, linked)
        steps = list(linked.steps)
        if target is not None:
            self._step(flow, target)
            wanted = graph_ancestors(steps, target)
            steps = [prune_hosted(s, wanted) for s in steps if s.name in wanted]
        values = self._parameters(flow, params or {})
        setup_made = {n for s in flow.setups for n in (*s.body.makes, *s.body.others)}
        setup_reads = {n for s in flow.setups for n in s.body.reads if n in self.plain() and n not in setup_made}
        bound = self.names.bound(flow)
        captured = capture.capture(
            {n for s in steps for n in s.captures} | setup_reads,
            self.shell.user_ns,
            self.names.mine,
            self.store,
            skip=lambda n: (n in bound and n not in self.names.mine) or n in flow.params or n in setup_made or self.hidden(n),
            origin=self.cells.origin,
            label=self.code_label,
            readers=lambda n: self._readers(steps, n),
            secrets=self.settings.secrets,
        )
        capture.add_modules(captured, {r for s in steps for r in flow.steps[s.name].body.import_roots}, self.store)
        for setup in flow.setups:
            capture.add_modules(captured, setup.body.import_roots, self.store)
        sources = dict(captured.sources)
        for step in steps:
            cell = flow.steps[step.name]
            sources[step.filename] = {"label": cell.ran.label, "source": cell.ran.source}
        for setup in flow.setups:
            sources[setup.filename] = {"label": setup.ran.label, "source": setup.source}
        files = hash_files({p for s in steps for p in s.options.files}, self.folder)
        capture.keep_mentioned(captured, [*(cell["source"] for cell in sources.values()), *(s.source for s in steps)])
        steps = [self._closed(step, captured.names) for step in steps]
        entries = {n: codec.entry(self.store, n, v, main=self.shell.user_ns) for n, v in values.items()}
        setup_captures = setup_reads & set(captured.names)
        known = keys.Known(
            captured,
            {step.name: flow.steps[step.name].body.reads for step in steps},
            {step.name: flow.steps[step.name].body.import_roots for step in steps},
            keys.Setup(tuple(s.source for s in flow.setups), _imported_by(flow.setups), frozenset(setup_captures)),
            params=entries,
            files=files,
            space={**self.shell.user_ns, **self.names.mine},
            folder=Path.cwd(),
            life=life,
            tags=tuple(tags),
        )
        steps = keys.keyed(steps, known)
        if origin is not None:
            steps = keys.resumed(steps, origin.spec.steps, files)
        spec = Spec(
            flow=flow.name,
            run="",
            steps=tuple(steps),
            params=entries,
            captures=captured.names,
            sources=sources,
            modules=captured.modules,
            setup=tuple(s.filename for s in flow.setups),
            setup_captures=tuple(sorted(setup_captures)),
            imports=capture.imports_beforehand(
                captured,
                [self.names.mine.get(n, self.shell.user_ns.get(n)) for n in captured.names],
                [*(s.source for s in steps), *(s.source for s in flow.setups)],
            ),
            files=files,
            tags=tuple(tags),
            target=target,
            max_parallel=max_parallel or self.settings.max_parallel,
            origin=origin.id if origin else None,
            fresh=fresh,
            life=life,
            notebook=str(notebook_path(self.shell) or ""),
            user=_user(),
            started_at=time.time(),
            python=sys.version.split()[0],
            flowbook=__version__,
            previews=self.settings.previews,
        )
        return spec, values, notes + captured.warnings

    def _closed(self, step: Step, names: Mapping[str, Any]) -> Step:
        """`captures` with all that they need in turn."""
        closed: set[str] = set()
        queue = [n for n in step.captures if n in names]
        while queue:
            name = queue.pop()
            if name not in closed:
                closed.add(name)
                queue.extend(n for n in names[name]["needs"] if n in names)
        return dataclasses.replace(step, captures=tuple(sorted(closed)))

    def _parameters(self, flow: FlowDef, given: Mapping[str, Any]) -> dict[str, Any]:
        import difflib

        for name in given:
            if name not in flow.params:
                near = difflib.get_close_matches(name, flow.params, 1)
                raise DefinitionError(
                    Finding(
                        "%flow run",
                        f"no parameter `{name}`" + (f"; did you mean --{near[0]}?" if near else ""),
                        f"Parameters: {', '.join(flow.params) or 'none; a %%flowparams cell defines them'}.",
                    )
                )
        for name, value in {**{n: p.default for n, p in flow.params.items()}, **given}.items():
            text = value.text if isinstance(value, CommandLine) else value
            if name in self.settings.secrets or capture.looks_secret(name, text):
                raise DefinitionError(
                    Finding(
                        f"parameter {name}",
                        "it looks like a secret, and parameters are written to the store",
                        "Read it inside the step: os.environ[...], with `--env NAME` to take NAME from this kernel's environment.",
                    )
                )
        for name, param in flow.params.items():
            present = self.shell.user_ns.get(name, param.default)
            if name not in given and not self.names.param_untouched(name):
                raise DefinitionError(
                    Finding(
                        f"parameter {name}",
                        f"a plain cell set `{name}` to {codec_short(present)}, but a run takes its parameters from %%flowparams or from `%flow run --{name} …{self.option(flow.name)}`",
                        f"Run `%flow run --{name} …{self.option(flow.name)}`, or change the value in %%flowparams and run that cell.",
                    )
                )
        return {name: convert(param, given[name]) if name in given else param.default for name, param in flow.params.items()}

    def _readers(self, steps: Iterable[Step], name: str) -> str:
        found = [f"step {s.name} ({s.label})" for s in steps if name in s.captures]
        return ", ".join(found) or "a function that a step uses"

    def hidden(self, name: str) -> bool:
        return name in self.shell.user_ns_hidden

    def code_label(self, filename: str) -> str | None:
        numbers = getattr(self.shell.compile, "_filename_map", {})
        return f"Cell In[{numbers[filename]}]" if filename in numbers else None

    def _step(self, flow: FlowDef, name: str) -> StepCell:
        if name not in flow.steps:
            near = nearest(name, [*flow.steps, *self.classes()])
            classes = f" Classes: {', '.join(self.classes())}." if self.classes() else ""
            hint = f"; did you mean {near!r}?" if near else ""
            raise DefinitionError(Finding("", f"no step {name!r}{hint}", f"Steps: {', '.join(flow.steps)}.{classes}"))
        return flow.steps[name]

    # ---- runs -------------------------------------------------------------------------------------------------------

    def run(
        self,
        *,
        step: str | None = None,
        flow: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        max_parallel: int | None = None,
        origin: Run | None = None,
        fresh: bool = False,
        kubernetes: Mapping[str, Any] | None = None,
        yes: bool = False,
    ) -> tuple[Run, list[str]]:
        """Start a run; returns at once. The second value is what to tell the user. `kubernetes`: the arguments of --with kubernetes."""
        self.engine.check_process()
        defined = self.existing(flow)
        notes = self._drop_deleted(defined, self.cells.file_order())
        spec, values, warnings = self.spec_of(
            defined, target=step, params=params, tags=tags, max_parallel=max_parallel, origin=origin, fresh=fresh
        )
        spec, cluster = self.placed(spec, kubernetes, yes, origin)
        spec = take_number(spec, self.store)
        view = self.engine.run(spec, environment(), os.getcwd(), list(sys.path), keep_runs=self.settings.keep_runs, cluster=cluster)
        run = Run(spec, view, values, self.option(spec.flow))
        defined.runs.append(run)
        defined.at = None
        if step is None and defined.past:  # a run of the whole flow: what it does not make, the flow makes no more
            defined.past = {}
            notes += self.names.bind(defined, self.link(defined))
        notes += self.names.rebind(defined, run)
        return run, notes + warnings

    def placed(
        self, spec: Spec, kubernetes: Mapping[str, Any] | None, yes: bool, origin: Run | None = None
    ) -> tuple[Spec, Mapping[str, Any] | None]:
        """See engine/launch/placing.py, which is loaded only where a step asks for a cluster. Raises DefinitionError."""
        steps = [*spec.steps, *(origin.spec.steps if origin is not None else ())]
        if kubernetes is None and not any(name == "kubernetes" for step in steps for name, _ in step.options.extra):
            return spec, None
        from flowbook.engine.launch.placing import carried, placed, placement_of

        if kubernetes is None and origin is not None and self.settings.cluster is not None:
            kubernetes = placement_of(origin.spec)  # it goes on where it was
        spec, cluster = placed(spec, self.settings.cluster, os.environ, every=kubernetes, yes=yes)
        return (spec if cluster is None else carried(spec, self.store)), cluster

    def flow_class(self, name: str | None) -> type[FlowSpec] | None:
        """The FlowSpec class that the notebook calls so; None if that name is something else."""
        found = self.shell.user_ns.get(name) if name else None
        module = sys.modules.get("flowbook.spec.flowspec")
        return found if module is not None and isinstance(found, type) and issubclass(found, module.FlowSpec) else None

    def open_run(self, flow: str, run_id: str) -> Run:
        """Any run of the store, those of earlier kernels too."""
        return self.runs.open(flow, run_id)

    def resume(self, run_id: str | None = None, flow: str | None = None, params: Mapping[str, Any] | None = None) -> tuple[Run, list[str]]:
        """A new run which takes what an ended one committed, as far as code, captures and parameters are unchanged.

        `params` are parameters that get another value than they had. A run that was left open by its engine goes on itself, under its
        own number.
        """
        last = self.runs.find(run_id, flow)
        if last.view.ended == "lost":
            if params:
                what = f"run {last.id} was left open and goes on itself, with the parameters that it has"
                raise DefinitionError(Finding("%flow resume", what, f"{last.command('resume')} without parameters, or start a new run."))
            return self.runs.attach(last.id, last.spec.flow)
        if last.view.ended is None:
            raise DefinitionError(
                Finding(
                    "%flow resume",
                    f"run {last.id} is still open",
                    f"Wait for it ({last.command('wait')}) or stop it ({last.command('stop')}).",
                )
            )
        if last.view.ended == "succeeded":
            again = f"`%flow run{self.starts(self.flow(last.spec.flow))}` starts a new one."
            raise DefinitionError(Finding("%flow resume", f"run {last.id} succeeded: nothing is missing", again))
        if (method := last.spec.steps[0].method if last.spec.steps else None) is not None:
            from flowbook.kernel import classes

            return classes.resume(self, last, method, params or {})
        defined = self.existing(last.spec.flow)
        changed = {n: v for n, v in last.params.items() if n in defined.params} | dict(params or {})
        run, notes = self.run(
            step=last.spec.target,
            flow=last.spec.flow,
            params=changed,
            tags=last.spec.tags,
            max_parallel=last.spec.max_parallel,
            origin=last,
        )
        return run, notes + self.run_again(run, last)

    def run_again(self, run: Run, last: Run) -> list[str]:
        same = keys.unchanged(run.spec.steps, last.spec.steps)
        again = [s.name for s in run.spec.steps if s.name not in same]
        if again and any(s in {x.name for x in last.spec.steps} for s in again):
            return [f"changed since run {last.id}, so they run again: {', '.join(again)}"]
        return []

    def stop(self, run: Run, step: str | None = None, index: Sequence[int] | None = None) -> str:
        """Ask the run's engine to stop it, a step of it, or one task, by a request object."""
        if step is not None:
            must_have(run, step, "%flow stop")
        if run.view.ended == "lost":
            return f"nothing of run {run.id} runs: {run.view.trouble}"
        if run.view.ended is not None:
            return f"run {run.id} has already ended ({run.view.ended})"
        request = {"ask": "stop", "step": step, "index": list(index) if index is not None else None}
        name = f"stop-{time.time_ns()}"
        self.store.create(layout.request(run.spec.flow, run.id, name), json.dumps(request).encode())
        self.engine.poke(run.spec.flow, run.id)
        what = task_name(step, tuple(index or ())) if step else "it"
        return f"run {run.id}: asked to stop {what}"

    def wait(self, run: Run, timeout_s: float | None = None, until: Callable[[], bool] | None = None) -> None:
        """Wait until the run ended (or `until()` is true). An interrupt ends the wait, not the run."""
        self.engine.check_process()
        done = until or (lambda: False)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self.engine.changed:
            while run.view.ended is None and not done():
                left = 0.5 if deadline is None else min(0.5, deadline - time.monotonic())
                if left <= 0:
                    raise FlowbookError(f"run {run.id} has not ended after {timeout_s} s; it goes on")
                self.engine.changed.wait(left)

    def outcome(self, run: Run) -> None:
        """Raise what an ended run has to tell."""
        from flowbook.kernel.display import failure

        ended = run.view.ended
        if ended == "failed":
            raise failure(run)
        if ended == "stopped":
            raise RunStopped(f"run {run.id} was stopped; {run.command('resume')} runs what is missing")
        if ended == "lost":
            raise EngineError(run.view.trouble or "the engine process ended")

    # ---- reading results --------------------------------------------------------------------------------------------

    def load_entry(self, entry: Mapping[str, Any], run: Run, notes: list[str] | None = None) -> Any:
        """The value of an entry, its classes bound to those of the kernel, else rebuilt from the run's code."""
        space = self.shell.user_ns
        results.set_reader(self.reader(run))
        return codec.load(self.store, entry, main=space, resolve=lambda q, k: self._from_run(run, q), notes=notes)

    def reader(self, run: Run) -> results.Reader:
        return results.Reader(self.store, run.spec.flow, self.shell.user_ns, lambda q, k: self._from_run(run, q))

    def _from_run(self, run: Run, qualname: str) -> Any:
        root, *rest = qualname.split(".")
        key = f"{run.id} {root}"
        if key not in self.reader_resolve:
            entry = run.spec.captures[root]["entry"] if root in run.spec.captures else self._definition_of_step(run, root)
            if entry is None:
                raise KeyError(qualname)
            if self.names.waits(root):  # the flow's own name: the class is bound there, so that all instances have the one class
                return codec.look_up({root: self.names.load(root)}, qualname)
            self.reader_resolve[key] = codec.load(self.store, entry, main=self.shell.user_ns, resolve=lambda q, k: self._from_run(run, q))
        value = self.reader_resolve[key]
        for part in rest:
            value = getattr(value, part)
        return value

    def _definition_of_step(self, run: Run, name: str) -> Any:
        for step in reversed(run.spec.steps):
            if name in step.saves:
                for task, state in run.view.state.tasks.items():
                    if task.step == step.name and state.state == "succeeded":
                        commit = self.commit(run, step.name, task.index)
                        if name in commit["artifacts"]:
                            return commit["artifacts"][name]
        return None

    def commit(self, run: Run, step: str, index: tuple[int, ...]) -> dict[str, Any]:
        found = results.read_commit(self.store, run.spec.flow, run.id, step, index)
        if found is None:
            raise ArtifactNotLoaded(f"{task_name(step, index)} of run {run.id} has no result")
        return found

    def _engine_environment(self) -> dict[str, str]:
        environ = dict(os.environ)
        if self.settings.gpus is not None:
            environ["FLOWBOOK_GPUS"] = str(self.settings.gpus)
        return environ

    def close(self) -> None:
        self.engine.close()


def must_have(run: Run, step: str, where: str) -> None:
    """Raises DefinitionError, with the nearest name, if the run has no such step."""
    names = [s.name for s in run.spec.steps]
    if step not in names:
        hint = f"; did you mean {near!r}?" if (near := nearest(step, names)) else ""
        raise DefinitionError(Finding(where, f"run {run.id} has no step {step!r}{hint}", f"Steps: {', '.join(names)}."))


def nearest(name: str | None, known: Iterable[str]) -> str:
    """The one that is spelled most like `name`; "" if none is."""
    import difflib  # slow to import, and only for a mistake

    return next(iter(difflib.get_close_matches(name, list(known), 1)), "") if name else ""


def _has_steps(cls: type) -> bool:
    return any(hasattr(value, "is_step") for base in cls.__mro__ for value in vars(base).values() if isinstance(value, types.FunctionType))


_DEFINITIONS = (type, types.FunctionType, types.ModuleType)


def refuse_late_options(source: str, label: str) -> None:
    """Option lines count only at the head of a cell; further down they would silently be comments."""
    for number, text in enumerate(source.split("\n"), 1):
        if re.match(r"#\|\s*--[a-z]", text):
            raise DefinitionError(
                Finding(
                    f"{label}, line {number}",
                    f"`{text.strip()}` stands below code, where no option counts",
                    "Move it under the first line.",
                )
            )


class _Origins(Mapping[str, str]):
    """Plain name → the cell that set it, looked up only when a message needs it."""

    def __init__(self, names: Mapping[str, str], cells: Cells) -> None:
        self._names, self._cells = names, cells

    def __getitem__(self, name: str) -> str:
        self._names[name]
        return self._cells.origin(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _imported_by(setups: Iterable[SetupCell]) -> frozenset[str]:
    return frozenset(root for setup in setups for root in setup.body.import_roots)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def codec_short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def split_cell(raw: str, cell: str) -> tuple[str, list[tuple[int, str]]]:
    """The body padded to the line numbers of the raw cell, and the `#|` option lines under the first line.

    >>> split_cell("%%flowstep a\\n#| --gpu 1\\nx = 1\\n", "#| --gpu 1\\nx = 1\\n")
    ('\\n\\nx = 1\\n', [(2, '--gpu 1')])
    """
    lines = cell.split("\n")
    offset = max(raw.rstrip("\n").count("\n") - cell.rstrip("\n").count("\n"), 0)
    found: list[tuple[int, str]] = []
    for number, text in enumerate(lines):
        if not text.lstrip().startswith("#|"):
            break
        found.append((offset + number + 1, text.lstrip()[2:].strip()))
        lines[number] = ""
    return "\n" * offset + "\n".join(lines), found


def read_params(source: str, label: str, namespace: dict[str, Any]) -> list[Param]:
    """The parameters of a `%%flowparams` cell: assignments of constant expressions, nothing else."""
    import ast
    import keyword

    body = read_body(source, label=label)
    if body.refusals:
        raise DefinitionError(*body.refusals)
    found: list[Param] = []
    findings: list[Finding] = []
    lines = source.split("\n")
    for node in ast.parse(source).body:
        where = f"{label}, line {node.lineno}"
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign) and len(node.targets) == 1
            else None
        )
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or not isinstance(target, ast.Name) or node.value is None:
            findings.append(Finding(where, "not a parameter", "Write one `name = value` or `name: type = value` a line."))
            continue
        name = target.id
        if name in RESERVED_PARAMS or name.startswith("_") or keyword.iskeyword(name):
            findings.append(Finding(where, f"parameter `{name}` is named like an option of `%flow run`", "Use another name."))
            continue
        kind = None
        if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name):
            kind = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}.get(node.annotation.id)
        try:
            value = eval(compile(ast.Expression(node.value), label, "eval"), dict(namespace))
        except Exception as error:
            findings.append(
                Finding(where, f"the default of `{name}` fails: {type(error).__name__}: {error}", "Use a value that needs no other cell.")
            )
            continue
        if kind is float and type(value) is int:
            value = float(value)
        if kind is not None and value is not None and not isinstance(value, kind):
            findings.append(Finding(where, f"the default of `{name}` is {value!r}, not of type {kind.__name__}", "Change one of them."))
            continue
        text = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :]
        found.append(Param(name, value, kind or (type(value) if value is not None else None), text.partition("#")[2].strip(), label))
    if findings:
        raise DefinitionError(*findings)
    return found


def convert(param: Param, given: Any) -> Any:
    """A parameter's value: from the command line by its type, from Python as it is."""
    if not isinstance(given, CommandLine):
        if param.kind is float and type(given) is int:
            return float(given)
        if param.kind in (int, float, str, bool) and given is not None and type(given) is not param.kind:
            raise DefinitionError(
                Finding("%flow run", f"--{param.name} takes {param.kind.__name__}, not {given!r}", f"Its default is {param.default!r}.")
            )
        return given
    text = given.text
    try:
        if param.kind is bool:
            return {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}[text.lower()]
        if param.kind in (int, float, str):
            return param.kind(text)
        return json.loads(text)
    except (ValueError, KeyError):
        expected = param.kind.__name__ if param.kind in (int, float, bool, str) else "JSON"
        raise DefinitionError(
            Finding("%flow run", f"--{param.name} takes {expected}, not {text!r}", f"Its default is {param.default!r}.")
        ) from None


@dataclass(frozen=True)
class CommandLine:
    """A value as typed behind an option."""

    text: str


def graph_ancestors(steps: Sequence[Step], target: str) -> set[str]:
    """The target and all that it needs."""
    needs = {s.name: {src for src, dst, *_ in graph.edges(steps) if dst == s.name} | set(s.scope) for s in steps}
    wanted: set[str] = set()
    queue = [target]
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue.extend(needs[name])
    return wanted


def prune_hosted(step: Step, wanted: set[str]) -> Step:
    return dataclasses.replace(step, hosted=tuple(h for h in step.hosted if h in wanted))


def hash_files(patterns: Iterable[str], folder: Path) -> dict[str, Any]:
    """Path (relative to the notebook's folder) → {size, mtime_ns, sha256} of every file that `--files` names."""
    found: dict[str, Any] = {}
    for pattern in sorted(patterns):
        matches = sorted(p for p in glob.glob(pattern, root_dir=folder, recursive=True) if (folder / p).is_file())
        if not matches:
            raise DefinitionError(
                Finding("--files", f"{pattern!r} matches no file in {folder}", "Patterns are relative to the notebook's folder.")
            )
        for match in matches:
            stat = (folder / match).stat()
            with (folder / match).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[match] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
    return found


_session: Session | None = None


def attach(shell: Any) -> Session:
    """The session of this shell, set up on the first call."""
    global _session
    if _session is not None and _session.shell is shell:
        return _session
    from flowbook.kernel import magics

    _session = Session(shell)
    magics.register(shell, _session)
    _session.engine.start()
    _session.warm()
    with contextlib.suppress(Exception):  # a run that cannot be read says so when it is asked for, whatever is wrong with it
        if (news := _session.runs.news(ended=magics.takes_input(shell))) is not None:
            print(news)
    return _session


def current_session() -> Session:
    if _session is None:
        raise FlowbookError("flowbook is not loaded in this kernel: run `%load_ext flowbook` first")
    return _session
