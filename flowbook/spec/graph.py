"""Step cells become linked steps: who reads what from whom, who runs in which fan-out, and all that is wrong with it.

Pure and deterministic. `link` walks the cells in the order of the notebook and gives each its place; a cell sees only what
stands above it, so no cycle can arise from data. One function per rule; a rule adds findings and never stops the others, so
a user sees everything at once. Where the flow would compute something else than the cells read one after the other, the
rule is an error. The rules are those of "Step cells" in the documentation; each docstring names its own.

    Maker     a step that makes a name. Its candidates for a reader: the makers above, nearest first, back to the nearest
              that makes it for certain; the last of them that happened gives the value
    Scope     the foreach steps per whose items a step runs, outermost first
    Plan      the expressions of --foreach and --when: evaluated by the host, or by a small task of their own
"""

from __future__ import annotations

import difflib
import html
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flowbook.errors import Finding
from flowbook.spec.body import BUILTINS, VISIBLE_KINDS, Body, read_body
from flowbook.spec.flow import Input, Json, Options, Step, is_token

Scope = tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A step as its cell defines it. `source` is padded; `foreach_body` and `when_body` are read here when not given."""

    name: str
    source: str
    filename: str
    label: str
    options: Options
    body: Body
    foreach_body: Body | None = None
    when_body: Body | None = None


@dataclass(frozen=True)
class Linked:
    """The steps in the order of the notebook, as far as they could be linked, and what is wrong."""

    steps: tuple[Step, ...]
    findings: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()


def link(
    cells: Sequence[Cell],
    *,
    plain: Mapping[str, str],
    params: Collection[str] = (),
    modules: Collection[str] = (),
    setup_names: Collection[str] = (),
) -> Linked:
    """Links the cells of one flow, given in the order of the notebook.

    `plain`: names of the kernel's plain cells → where they were set ("" if unknown), without those that the flow itself bound.
    `modules`: those of them that are modules, functions or classes. `setup_names`: bound by %%flowsetup in every worker.
    `Step.captures` holds the names that are read directly; what those use in turn is the caller's to add, and so is `key`.
    """
    linker = _Linker(plain, frozenset(params), frozenset(modules), frozenset(setup_names))
    for cell in cells:
        linker.add(cell)
    linker.check_references(cells)
    linker.check_names()
    linker.check_missing()
    steps = tuple(_with_hosts(linker.nodes, [node.step() for node in linker.nodes]))
    steps = tuple(replace(step, watch=_watch(node, linker)) for node, step in zip(linker.nodes, steps, strict=True))
    return Linked(steps, tuple(dict.fromkeys(linker.findings)), tuple(dict.fromkeys(linker.warnings)))


# ---------------------------------------------------------------------------------------------------------------- one step


@dataclass(eq=False)
class _Found:
    """Where the value of a name may come from, seen from one step."""

    makers: list[_Node] = field(default_factory=list)
    captured: bool = False
    given: bool = False  # by %%flowsetup
    blocker: _Node | None = None  # the nearest step that binds the name without saving it, or deletes it

    def cut(self, maker: _Node) -> None:
        """Forgets a maker that cannot be read, and all that is older: an older value would be silently another."""
        self.makers = self.makers[: self.makers.index(maker)]
        self.captured = False


@dataclass(eq=False)
class _Read:
    """One name that a step reads, in its body or in its plan."""

    name: str
    required: bool
    plan: str = ""  # "--foreach" or "--when"
    line: int = 0
    found: _Found = field(default_factory=_Found)

    def input(self) -> Input:
        makers = tuple(node.cell.name for node in self.found.makers)
        return Input(self.name, makers, self.found.captured, self.required and not self.found.given)


@dataclass(eq=False)
class _Node:
    """A cell while it is linked. `made`: visible name → certain; `hidden`: bound, but not saved → why."""

    cell: Cell
    position: int
    made: dict[str, bool] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # of `made`: "import", "function", "class"; artifacts are not listed
    hidden: dict[str, str] = field(default_factory=dict)
    reads: list[_Read] = field(default_factory=list)
    params: set[str] = field(default_factory=set)
    plan_params: set[str] = field(default_factory=set)
    missing: list[_Read] = field(default_factory=list)
    joins: list[_Node] = field(default_factory=list)
    base: Scope = ()
    closes: list[Scope] = field(default_factory=list)  # the fan-outs whose last level its joins close
    above: set[str] = field(default_factory=set)  # every step that comes before it by an edge

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def options(self) -> Options:
        return self.cell.options

    @property
    def scope(self) -> Scope:
        return (*self.base, self.name) if self.options.foreach else self.base

    @property
    def shown(self) -> str:
        return f"step {self.name} ({self.cell.label})" if self.cell.label else f"step {self.name}"

    def where(self, line: int = 0, plan: str = "") -> str:
        """``step train (Cell In[7], line 3)`` or ``step train (Cell In[7]), --foreach``."""
        if plan:
            return f"{self.shown}, {plan}"
        place = ", ".join(part for part in (self.cell.label, f"line {line}" if line else "") if part)
        return f"step {self.name} ({place})" if place else f"step {self.name}"

    def deletes(self, name: str) -> bool:
        return name in self.cell.body.deletes and not self.made.get(name, False)

    def step(self) -> Step:
        """The linked step, without hosts and without watch."""
        body_reads = [read for read in self.reads if not read.plan]
        plan_inputs: dict[str, Input] = {}
        for read in sorted((read for read in self.reads if read.plan), key=_order):
            if read.name not in plan_inputs or read.required:
                plan_inputs[read.name] = read.input()
        captures = {read.name for read in self.reads if read.found.captured}
        return Step(
            name=self.name,
            source=self.cell.source,
            filename=self.cell.filename,
            label=self.cell.label,
            options=self.options,
            scope=self.scope,
            inputs=tuple(read.input() for read in sorted(body_reads, key=_order)),
            plan_inputs=tuple(plan_inputs.values()),
            saves=tuple(self.made),
            certain=tuple(name for name, certain in self.made.items() if certain),
            unsaved=tuple(self.hidden.items()),
            captures=tuple(sorted(captures)),
            params=tuple(sorted(self.params | self.plan_params)),
        )


def _order(read: _Read) -> tuple[int, str]:
    return read.line, read.name


_WHY_HIDDEN = {
    "loop": "a loop variable",
    "with": "the target of a with statement",
    "except": "the name of a caught exception",
    "private": "a name with a leading underscore",
}
_NOT_IN_OUT = "not named in --out"


class _Linker:
    """All nodes so far, and what was found wrong with them."""

    def __init__(self, plain: Mapping[str, str], params: frozenset[str], modules: frozenset[str], setup_names: frozenset[str]) -> None:
        self.plain, self.params, self.modules, self.setup_names = plain, params, modules, setup_names
        self.nodes: list[_Node] = []
        self.findings: list[Finding] = []
        self.warnings: list[Finding] = []

    def node(self, name: str) -> _Node | None:
        return next((node for node in self.nodes if node.name == name), None)

    def wrong(self, where: str, what: str, remedy: str) -> None:
        self.findings.append(Finding(where, what, remedy))

    def add(self, cell: Cell) -> None:
        """Links one cell to those above it."""
        node = _Node(_with_plan_bodies(cell), len(self.nodes))
        cell = node.cell
        self.findings += cell.body.refusals
        for body in (cell.foreach_body, cell.when_body):
            self.findings += body.refusals if body else ()
        if (first := self.node(cell.name)) is not None:
            self.wrong(
                node.where(), f"a step named {cell.name} stands already in {first.cell.label or 'another cell'}", "rename one of them"
            )
            return
        node.joins = [joined for name in cell.options.join if (joined := self.node(name)) is not None]
        self._read_everything(node)
        self._drop_closed(node)
        self._place(node)
        self._settle_imports(node)
        self._check_order_of_makers(node)
        self._check_joins(node)
        self._check_options(node)
        self._make(node)
        self._check_params(node)
        self._remember_edges(node)
        self.nodes.append(node)

    # -- reading

    def find(self, name: str, position: int, *, scope: Scope | None = None) -> _Found:
        """Candidates: the makers above, nearest first, back to the nearest certain one; else the value of a plain cell.

        With `scope`, imports of steps outside that scope are passed over.
        """
        found = _Found()
        for node in reversed(self.nodes[:position]):
            if name in node.made:
                if scope is not None and node.kinds.get(name) == "import" and not _is_prefix(node.scope, scope):
                    continue
                found.makers.append(node)
                if node.made[name]:
                    return found
            if name in node.hidden or node.deletes(name):
                found.blocker = node
                return found
        found.given = name in self.setup_names
        found.captured = not found.given and name in self.plain
        return found

    def _read_everything(self, node: _Node) -> None:
        """Candidates for every name that the body and the plan read, with what functions of other steps read in turn."""
        cell, options = node.cell, node.options
        bound = set(options.join) | set(options.foreach.names if options.foreach else ())
        self._read_body(node, cell.body, "", bound)
        if cell.foreach_body:
            self._read_body(node, cell.foreach_body, "--foreach", set(options.join))
        if cell.when_body:
            self._check_when(node, cell.when_body)
            self._read_body(node, cell.when_body, "--when", bound)

    def _read_body(self, node: _Node, body: Body, plan: str, bound: Collection[str]) -> None:
        wanted = {**dict.fromkeys(sorted(body.builtin_reads), False), **body.reads}
        queue = [(name, required, body.lines.get(name, 0)) for name, required in wanted.items() if name not in bound]
        seen = {name for name, _, _ in queue} | set(bound)
        while queue:
            name, required, line = queue.pop(0)
            if name in self.params:
                (node.plan_params if plan else node.params).add(name)
                continue
            read = _Read(name, required, plan, line, self.find(name, node.position))
            if read.found.makers or read.found.captured:
                node.reads.append(read)
            if required:
                self._check_found(node, read)
            for further in _used_by_definitions(read):
                if further not in seen:
                    seen.add(further)
                    queue.append((further, False, line))

    def _check_found(self, node: _Node, read: _Read) -> None:
        """Rule: what binds a name without saving it, or deletes it, stands between a reader and every earlier value."""
        found, name = read.found, read.name
        if found.blocker is None:
            if not (found.makers or found.captured or found.given or name in BUILTINS):
                node.missing.append(read)  # judged at the end, when the steps below are known
            return
        by = found.blocker
        where = node.where(read.line, read.plan)
        if name not in by.hidden:
            remedy = f"remove `del {name}` there, or make `{name}` again before it is read"
            self.wrong(where, f"`{name}` is deleted by {by.shown}, which stands above", remedy)
        elif by.hidden[name] == _NOT_IN_OUT:
            kept = ",".join(by.options.out or ())
            self.wrong(where, f"`{name}` was last made by {by.shown}, whose --out leaves it out", f"write --out {kept},{name} in {by.name}")
        else:
            remedy = f"write --out +{name} in {by.name}, or use another name there"
            self.wrong(where, f"`{name}` was last bound by {by.shown}, where it is {by.hidden[name]}, which is not saved", remedy)

    # -- the fan-out

    def _drop_closed(self, node: _Node) -> None:
        """Rule: after a join, a name that the fan-out assigned is read as ``t.name``; reading it bare is an error."""
        inner = max((joined.scope[:-1] for joined in node.joins), key=len, default=())
        closed = [(scope, other) for other in self.nodes for scope in other.closes]
        closed += [(joined.scope, node) for joined in node.joins if joined.scope and not _is_prefix(joined.scope, inner)]
        for read in list(node.reads):
            for maker in list(read.found.makers):
                if maker.kinds.get(read.name) == "import":
                    continue
                hit = next(((scope, by) for scope, by in closed if _is_prefix(scope, maker.scope)), None)
                if hit is None:
                    continue
                read.found.cut(maker)
                if read.required:
                    self._say_closed(node, read, maker, *hit)
                break
            self._forget_if_empty(node, read)

    def _say_closed(self, node: _Node, read: _Read, maker: _Node, scope: Scope, by: _Node) -> None:
        joined = next((name for name in node.options.join if (other := self.node(name)) and other.scope == scope), maker.name)
        own = by is node
        said = f"`{read.name}` is made by {maker.shown} for each item of {scope[-1]}, and {'this step' if own else by.shown} joins that fan-out"
        how = f"read it as t.{read.name} of each t in {joined}"
        self.wrong(node.where(read.line, read.plan), said, how if own else f"add --join {joined} and {how}")

    def _place(self, node: _Node) -> None:
        """Rule: a step runs in the deepest fan-out of the names it reads, and those must nest; --join X closes one level."""
        deepest: Scope = ()
        origin = ""
        for joined in node.joins:
            if len(joined.scope) - 1 > len(deepest):
                deepest, origin = joined.scope[:-1], joined.name
        for read in sorted(node.reads, key=lambda read: not read.required):
            for maker in list(read.found.makers):
                if maker.kinds.get(read.name) == "import":
                    continue
                if _is_prefix(maker.scope, deepest):
                    continue
                if _is_prefix(deepest, maker.scope):
                    deepest, origin = maker.scope, maker.name
                    continue
                read.found.cut(maker)
                if read.required:
                    what = f"`{read.name}` comes from the fan-out of {maker.scope[-1]}, and other names from that of {deepest[-1]}: they do not nest"
                    self.wrong(node.where(read.line, read.plan), what, f"close one of them: --join {maker.name} or --join {origin}")
                break
            self._forget_if_empty(node, read)
        node.base = deepest

    def _settle_imports(self, node: _Node) -> None:
        """Rule: an import is visible to later steps, but never puts one into a fan-out; past a join it is repeated."""
        for read in list(node.reads):
            kinds = {maker.kinds.get(read.name) for maker in read.found.makers}
            if "import" not in kinds:
                continue
            before = read.found.makers[0]
            read.found = self.find(read.name, node.position, scope=node.base)
            read.found.makers = [maker for maker in read.found.makers if _is_prefix(maker.scope, node.base)]
            if not (read.found.makers or read.found.captured or read.found.given) and read.required and read.name not in BUILTINS:
                what = f"`{read.name}` is imported by {before.shown}, for each item of {before.scope[-1]} only"
                self.wrong(node.where(read.line, read.plan), what, "import it again in this step")
            self._forget_if_empty(node, read)

    def _forget_if_empty(self, node: _Node, read: _Read) -> None:
        if read in node.reads and not (read.found.makers or read.found.captured):
            node.reads.remove(read)

    def _check_order_of_makers(self, node: _Node) -> None:
        """Rule: if unordered siblings make a name, reading it is an error that offers --join.

        A maker in a fan-out that the reader is not in cannot be meant, and imports repeat each other.
        """
        for read in node.reads:
            if not read.required or not read.found.makers or not read.found.makers[-1].made[read.name]:
                continue
            nearest = read.found.makers[-1]
            for other in self.nodes[: nearest.position]:
                same = other.made.get(read.name, False) and other.name not in nearest.above
                imported = "import" in (other.kinds.get(read.name), nearest.kinds.get(read.name))
                if not same or imported or not _is_prefix(other.scope, node.base):
                    continue
                what = f"`{read.name}` is made by both {other.shown} and {nearest.shown}, and neither comes after the other"
                pair = f"{other.name},{nearest.name}"
                remedy = f"write --join {pair} and read {other.name}.{read.name} or {nearest.name}.{read.name}; or --after {other.name} in {nearest.name}"
                self.wrong(node.where(read.line, read.plan), what, remedy)
                break

    def _check_joins(self, node: _Node) -> None:
        """Rule: a joined step in the reader's scope or around it is one task; one level deeper it is a sequence; no more."""
        for joined in node.joins:
            if _is_prefix(joined.scope, node.base):
                continue
            if joined.scope[:-1] == node.base:
                node.closes.append(joined.scope)
                continue
            inside = " in ".join(reversed(joined.scope))
            around = f"for each item of {node.base[-1]}" if node.base else "outside"
            what = f"--join {joined.name}: that step runs in the fan-out {inside}, and this one {around}"
            self.wrong(
                node.where(), what, "close one level at a time: join it first in a step of the fan-out around it, then join that step"
            )

    # -- options

    def _check_when(self, node: _Node, body: Body) -> None:
        """Rule: --when of a foreach step is decided before there are items."""
        foreach = node.options.foreach
        for name in foreach.names if foreach else ():
            if name in body.reads or name in body.builtin_reads:
                what = f"--when reads `{name}`, an item of the step's own --foreach, but is decided once, before the items"
                remedy = f'filter in the fan-out: --foreach "{foreach.target} in … if {node.options.when}"' if foreach else ""
                self.wrong(node.where(plan="--when"), what, remedy)

    def _check_options(self, node: _Node) -> None:
        """Rules: --always only outside a fan-out; --min-ok only with one."""
        if node.options.always and node.scope:
            what = f"--always cannot stand in a fan-out, and this step runs for each item of {node.scope[-1]}"
            self.wrong(node.where(), what, f"join {node.scope[-1]}, or move it to a step outside")
        if node.options.min_ok and not node.options.foreach:
            self.wrong(node.where(), "--min-ok needs --foreach: without it there is one task", "remove --min-ok, or use --catch VAR")

    # -- making

    def _make(self, node: _Node) -> None:
        """Rules: what a step saves; --out; names made only possibly; changes of modules that stay in the step."""
        body, options = node.cell.body, node.options
        sure = options.when is None and options.catch is None
        local = self._module_changes(node)
        for name in options.foreach.names if options.foreach else ():
            if name.startswith("_"):
                node.hidden[name] = _WHY_HIDDEN["private"]
            else:
                node.made[name] = sure
        for name, certain in body.makes.items():
            if name not in local:
                node.made[name] = node.made.get(name, False) or (certain and sure)
        for name, kind in body.others.items():
            if kind in VISIBLE_KINDS:
                node.made[name] = name in body.certain_others and sure
                node.kinds[name] = kind
            elif name not in node.made:
                node.hidden[name] = _WHY_HIDDEN[kind]
        self._restrict(node)
        for name in options.out_add:
            self._add_output(node, name, sure)
        if options.catch:
            node.made[options.catch] = options.when is None
            node.hidden.pop(options.catch, None)

    def _module_changes(self, node: _Node) -> set[str]:
        """Rule: a change in place of a module, function or class is not an artifact; it is lost with the worker, so warn."""
        body = node.cell.body
        local = set()
        items = node.options.foreach.names if node.options.foreach else ()
        for name in sorted(body.changes - body.rebinds - self.params - {*items, *node.options.join}):
            found = self.find(name, node.position)
            if not (name in found.makers[0].kinds if found.makers else name in self.modules):
                continue
            local.add(name)
            what = f"`{name}` is a module, function or class: what this step changes in it is gone when the step ends"
            self.warnings.append(
                Finding(node.where(body.lines.get(name, 0)), what, "put the change into a %%flowsetup cell to have it in every step")
            )
        return local

    def _restrict(self, node: _Node) -> None:
        """Rule: --out a,b saves only these; items, imports, functions and classes stay visible."""
        options = node.options
        if options.out is None:
            return
        items = options.foreach.names if options.foreach else ()
        for name in list(node.made):
            if name not in options.out and name not in items and name not in node.kinds:
                del node.made[name]
                node.hidden[name] = _NOT_IN_OUT
        sure = options.when is None and options.catch is None
        for name in options.out:
            if name not in node.made and name != options.catch:
                self._add_output(node, name, sure)

    def _add_output(self, node: _Node, name: str, sure: bool) -> None:
        """Rule: --out +x saves a private name or loop variable as well, or an input that a call changed in place."""
        body = node.cell.body
        if name in node.made:
            return
        if name in node.hidden:
            del node.hidden[name]
            node.made[name] = sure and (name in body.certain_others or body.makes.get(name, False))
        elif any(read.name == name and not read.plan for read in node.reads) and name not in body.deletes:
            node.made[name] = sure and body.reads.get(name, False)
        else:
            near = difflib.get_close_matches(name, sorted({*body.makes, *body.others, *body.reads}), 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            sign = "+" if name in node.options.out_add else ""
            self.wrong(node.where(), f"--out {sign}{name}: the step neither assigns nor reads `{name}`{hint}", "name what the step assigns")

    def _check_params(self, node: _Node) -> None:
        """Rule: parameters are read-only in steps."""
        body, options = node.cell.body, node.options
        bound = {*body.makes, *body.others, *body.changes, *body.deletes, *(options.foreach.names if options.foreach else ())}
        bound |= {options.catch} if options.catch else set()
        for name in sorted(bound & self.params):
            self.wrong(
                node.where(body.lines.get(name, 0)),
                f"`{name}` is a parameter, and parameters are read-only",
                "use another name in the step",
            )

    def _remember_edges(self, node: _Node) -> None:
        parents = {maker.name for read in node.reads for maker in read.found.makers} | {joined.name for joined in node.joins}
        parents |= {name for name in node.options.after if self.node(name) is not None}
        node.above = parents.union(*(above.above for name in parents if (above := self.node(name)) is not None))

    # -- rules that need all cells

    def check_references(self, cells: Sequence[Cell]) -> None:
        """Rule: --after and --join name steps that stand above."""
        order = {cell.name: position for position, cell in reversed(list(enumerate(cells)))}
        references = {cell.name: (*cell.options.after, *cell.options.join) for cell in cells}
        cyclic: set[str] = set()
        for cycle in _cycles(references, order):
            cyclic |= set(cycle)
            node = self.node(cycle[0])
            where = node.where() if node else ""
            self.wrong(where, f"--after and --join form a cycle: {' → '.join([*cycle, cycle[0]])}", "remove one of them")
        for node in self.nodes:
            for option, names in (("--after", node.options.after), ("--join", node.options.join)):
                for name in names:
                    self._check_reference(node, option, name, order, cyclic)

    def _check_reference(self, node: _Node, option: str, name: str, order: Mapping[str, int], cyclic: Collection[str]) -> None:
        if name == node.name:
            self.wrong(node.where(), f"{option} {name} names the step itself", f"remove {option} {name}")
        elif name not in order:
            near = difflib.get_close_matches(name, sorted(order), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.wrong(node.where(), f"{option} {name}: there is no step {name}{hint}", f"steps: {', '.join(_by_position(order))}")
        elif order[name] > order[node.name] and not (name in cyclic and node.name in cyclic):
            below = self.node(name)
            self.wrong(node.where(), f"{option} {name}: {below.shown if below else name} stands below", "move one of the two cells")

    def check_names(self) -> None:
        """Rule: a step named like an artifact, or like a plain name or builtin that a body reads, is refused, naming both places."""
        for node in self.nodes:
            for other in self.nodes:
                if node.name in other.made or node.name in other.cell.body.makes:
                    self.wrong(node.where(), f"the step is named like `{node.name}`, which {other.shown} makes", "rename one of them")
                self._check_plain_name(node, other)

    def _check_plain_name(self, node: _Node, reader: _Node) -> None:
        name = node.name
        if name in reader.options.join:
            return
        bodies = [body for body in (reader.cell.body, reader.cell.foreach_body, reader.cell.when_body) if body is not None]
        plainly = any(name in body.reads or name in body.builtin_reads for body in bodies) and name in self.plain
        builtin = any(name in body.builtin_reads for body in bodies)
        if plainly or builtin:
            place = self.plain[name] if plainly else ""
            what = "a plain name" + (f" of {place}" if place else "") if plainly else "a builtin"
            self.wrong(node.where(), f"the step is named like {what} that {reader.shown} reads", "rename the step")

    def check_missing(self) -> None:
        """Rule: a name that nothing makes is an error with the nearest spelling; one that a step below makes names that step."""
        pool = sorted({*(name for node in self.nodes for name in node.made), *map(str, self.plain), *self.params})
        for node in self.nodes:
            for read in node.missing:
                self._say_missing(node, read, pool)

    def _say_missing(self, node: _Node, read: _Read, pool: Sequence[str]) -> None:
        where, name = node.where(read.line, read.plan), read.name
        below = next((other for other in self.nodes[node.position + 1 :] if name in other.made), None)
        if below is not None and not read.plan and name not in node.cell.body.immediate:
            return  # only a function reads it, and may be called by a step further down
        if self.node(name) is not None:
            self.wrong(where, f"`{name}` is a step, and its tasks are read through a join", f"add --join {name}")
        elif below is not None:
            self.wrong(
                where, f"`{name}` is made by {below.shown}, which stands below", "move that cell above this one, or rename one of the two"
            )
        else:
            near = difflib.get_close_matches(name, [other for other in pool if other != name], 1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            self.wrong(where, f"nothing makes `{name}`{hint}", "define it in a plain cell or in a step above")


def _with_plan_bodies(cell: Cell) -> Cell:
    foreach, when = cell.options.foreach, cell.options.when
    if foreach and cell.foreach_body is None:
        cell = replace(cell, foreach_body=read_body(foreach.expr, label=f"{cell.label}, --foreach", expression=True))
    if when is not None and cell.when_body is None:
        cell = replace(cell, when_body=read_body(when, label=f"{cell.label}, --when", expression=True))
    return cell


def _used_by_definitions(read: _Read) -> list[str]:
    """Rule: who uses a function of another step also reads, if they exist, the names which that function uses."""
    used: set[str] = set()
    for maker in read.found.makers:
        if maker.kinds.get(read.name) in ("function", "class") or read.name in maker.cell.body.deferred:
            used |= maker.cell.body.deferred.get(read.name, frozenset())
    return sorted(used)


def _is_prefix(outer: Scope, inner: Scope) -> bool:
    return inner[: len(outer)] == outer


def _by_position(order: Mapping[str, int]) -> list[str]:
    """Names by their position."""
    return sorted(order, key=lambda name: order[name])


def _cycles(references: Mapping[str, Sequence[str]], order: Mapping[str, int]) -> Iterator[list[str]]:
    """Each cycle of references once, beginning with its topmost step; a step that names itself is another mistake."""
    seen: set[frozenset[str]] = set()
    for start in _by_position(order):
        path = _path_back(references, start)
        if path and frozenset(path) not in seen:
            seen.add(frozenset(path))
            yield path


def _path_back(references: Mapping[str, Sequence[str]], start: str) -> list[str]:
    """The shortest way from a step over references back to it, without the return; empty if there is none."""
    paths = [[start]]
    visited = {start}
    while paths:
        path = paths.pop(0)
        for name in references.get(path[-1], ()):
            if name == start and len(path) > 1:
                return path
            if name not in visited and name in references:
                visited.add(name)
                paths.append([*path, name])
    return []


# ------------------------------------------------------------------------------------------------------- plans and watching


def _with_hosts(nodes: Sequence[_Node], steps: Sequence[Step]) -> list[Step]:
    """Rule: the worker that makes the only input of a plan evaluates it before its COMMIT; else a task of its own does.

    The host must be in the scope of the plan, must not be one that catches its failure, and its body must leave alone every other name
    that the plan reads; those are captured for the host then.
    """
    result = {step.name: step for step in steps}
    for node in nodes:
        step = result[node.name]
        host = _host(node) if step.planned else None
        if host is None:
            continue
        captured = {made.name for made in step.plan_inputs if made.captured}
        own = {read.name for read in node.reads if read.found.captured and not read.plan}
        there = result[host.name]
        result[host.name] = replace(
            there,
            hosted=(*there.hosted, node.name),
            captures=tuple(sorted({*there.captures, *captured})),
            params=tuple(sorted({*there.params, *node.plan_params})),
        )
        result[node.name] = replace(step, host=host.name, captures=tuple(sorted(own)), params=tuple(sorted(node.params)))
    return [result[step.name] for step in steps]


def _host(node: _Node) -> _Node | None:
    plan = [read for read in node.reads if read.plan]
    made = [read for read in plan if read.found.makers]
    hosts = {id(read.found.makers[0]): read.found.makers[0] for read in made}
    if len(hosts) != 1 or any(len(read.found.makers) > 1 or read.found.captured for read in made):
        return None
    (host,) = hosts.values()
    if host.scope != node.base or host.options.catch is not None:
        return None
    bodies = [body for body in (node.cell.foreach_body, node.cell.when_body) if body is not None]
    every = {name for body in bodies for name in (*body.reads, *body.builtin_reads)} | {read.name for read in plan}
    every |= {name for body in bodies for name in body.makes}
    others = every - {read.name for read in made}
    if others & set(node.options.join) or any(_touches(host, name) for name in others):
        return None
    return host


def _touches(host: _Node, name: str) -> bool:
    options, body = host.options, host.cell.body
    own = {*options.join, *(options.foreach.names if options.foreach else ())}
    return body.binds(name) or name in body.changes or name in own


def _watch(node: _Node, linker: _Linker) -> tuple[tuple[str, str], ...]:
    """Rule: a loaded input that the body changes without saving is an error if something reads it later, else a warning."""
    watched = {}
    for read in sorted(node.reads, key=_order):
        name, found = read.name, read.found
        defined = found.makers[0].kinds.get(name) if found.makers else ("module" if name in linker.modules else None)
        if read.plan or defined or name in node.made or name in node.cell.body.changes:
            continue
        later = any(_same_value(read, other) for below in linker.nodes[node.position + 1 :] for other in below.reads if other.name == name)
        watched[name] = "error" if node.scope or later else "warn"
    return tuple(watched.items())


def _same_value(one: _Read, other: _Read) -> bool:
    shared = {maker.name for maker in one.found.makers} & {maker.name for maker in other.found.makers}
    return bool(shared) or (one.found.captured and other.found.captured)


# ------------------------------------------------------------------------------------------------------------------ drawing


def edges(steps: Iterable[Step]) -> list[tuple[str, str, tuple[str, ...]]]:
    """(from, to, names read), in the order of the steps; an edge of --join or --after alone carries no names.

    Methods of a FlowSpec follow each other as their `self.next` says, whatever they read.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    known = list(steps)
    names = {step.name for step in known}
    for step in known:
        for read in (*step.plan_inputs, *step.inputs):
            for maker in read.makers:
                if is_token(read.name):
                    found.setdefault((maker, step.name), {})
                elif step.method is None:
                    found.setdefault((maker, step.name), {})[read.name] = None
        for name in (*step.options.join, *step.options.after):
            found.setdefault((name, step.name), {})
    return [(src, dst, tuple(labels)) for (src, dst), labels in found.items() if src in names]


def _layers(steps: Sequence[Step]) -> dict[str, int]:
    """Step → the length of the longest path that leads to it."""
    layer: dict[str, int] = {}
    incoming = edges(steps)
    for step in steps:  # in the order of the notebook, so all sources are known
        layer[step.name] = 1 + max((layer.get(src, -1) for src, dst, _ in incoming if dst == step.name), default=-1)
    return layer


def _note(step: Step) -> str:
    """What is special about a step, in a few words."""
    options = step.options
    parts = []
    if options.foreach:
        parts.append(f"for {options.foreach.target} in {options.foreach.expr}")
    elif step.scope:
        parts.append(f"per {step.scope[-1]}")
    if options.when is not None:
        parts.append(f"when {options.when}")
    if options.always:
        parts.append("always")
    return " · ".join(parts)


def graph_text(steps: Sequence[Step]) -> str:
    """The graph for a terminal: one line a step, indented by layer, with what it reads from whom."""
    if not steps:
        return "no steps"
    layer = _layers(steps)
    incoming = edges(steps)
    names = {step.name: "  " * layer[step.name] + step.name for step in steps}
    width = max(map(len, names.values()))
    lines = []
    for step in steps:
        sources = []
        for src, dst, labels in incoming:
            if dst == step.name:
                how = [*(["join"] if src in step.options.join else []), *(["after"] if src in step.options.after else []), *labels]
                sources.append(f"{src} ({', '.join(how)})" if how else src)
        said = [part for part in (_note(step), f"← {', '.join(sources)}" if sources else "") if part]
        lines.append(f"{names[step.name].ljust(width)}  {'  '.join(said)}".rstrip())
    return "\n".join(lines)


_STATE_COLOURS = {
    "running": "var(--jp-brand-color1, #1976d2)",
    "launched": "var(--jp-brand-color1, #1976d2)",
    "succeeded": "var(--jp-success-color1, #388e3c)",
    "reused": "var(--jp-success-color1, #388e3c)",
    "failed": "var(--jp-error-color1, #d32f2f)",
    "backoff": "var(--jp-warn-color1, #f57c00)",
    "stopped": "var(--jp-warn-color1, #f57c00)",
}
_LINE = "var(--jp-border-color1, #9e9e9e)"
_TEXT = "var(--jp-ui-font-color1, #222)"
_FAINT = "var(--jp-ui-font-color2, #666)"
_PAPER = "var(--jp-layout-color1, #fff)"
_HEIGHT, _ROW, _COLUMN, _MARGIN = 38, 16, 52, 8  # pixels
_LONGEST = 28  # letters of a line in a box


@dataclass(eq=False)
class _Box:
    """A place in the drawing: a step, or a bend of an edge that passes a layer (`step` is None)."""

    name: str
    step: Step | None
    width: float
    height: float
    x: float = 0
    y: float = 0  # the middle


def graph_svg(steps: Sequence[Step], states: Mapping[str, str] | None = None) -> str:
    """The graph as SVG, left to right; colours follow JupyterLab's theme, with fallbacks for light and dark pages.

    `states`: step → how it is ("running", "failed", …); it colours the frame and stands in the tooltip.
    """
    width, height, boxes, chains = _laid_out(steps)
    parts = [_edge_svg(chain, labels) for chain, labels in chains]
    parts += [_step_svg(boxes[step.name], (states or {}).get(step.name)) for step in steps]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        'style="max-width:100%;height:auto" font-family="var(--jp-ui-font-family, system-ui, sans-serif)" font-size="13" '
        f'role="img" aria-label="graph of {len(steps)} steps">{"".join(parts)}</svg>'
    )


def graph_layout(steps: Sequence[Step]) -> dict[str, Json]:
    """Where `graph_svg` draws what, for a drawing elsewhere: pixels, `x` and `y` of the upper left corner, `path` as in SVG.

    {"width", "height", "nodes": [{"step", "x", "y", "w", "h", "label", "note"}], "edges": [{"from", "to", "path", "reads"}]}
    """
    width, height, boxes, chains = _laid_out(steps)
    nodes = [
        {
            "step": box.name,
            "x": round(box.x, 1),
            "y": round(box.y - box.height / 2, 1),
            "w": round(box.width, 1),
            "h": box.height,
            "label": _short(box.name),
            "note": _short(_note(box.step)) if box.step else "",
        }
        for box in boxes.values()
    ]
    edges = [{"from": chain[0].name, "to": chain[-1].name, "path": _path(chain), "reads": list(labels)} for chain, labels in chains]
    return {"width": round(width), "height": round(height), "nodes": nodes, "edges": edges}


def _laid_out(steps: Sequence[Step]) -> tuple[float, float, dict[str, _Box], list[tuple[list[_Box], tuple[str, ...]]]]:
    """The size of the drawing, its boxes by step, and each edge with its bends and the names that are read over it."""
    layer = _layers(steps)
    columns: list[list[_Box]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    boxes: dict[str, _Box] = {}
    for step in steps:
        letters = max(len(_short(step.name)), len(_short(_note(step))) * 0.85)
        boxes[step.name] = _Box(step.name, step, max(64.0, letters * 7.4 + 20), _HEIGHT)
        columns[layer[step.name]].append(boxes[step.name])
    chains: list[tuple[list[_Box], tuple[str, ...]]] = []
    for src, dst, labels in edges(steps):
        bends = [_Box(f"{src} {dst} {n}", None, 0, 6) for n in range(layer[src] + 1, layer[dst])]
        for n, bend in enumerate(bends, layer[src] + 1):
            columns[n].append(bend)
        chains.append(([boxes[src], *bends, boxes[dst]], labels))
    _untangle(columns, [chain for chain, _ in chains])
    width, height = _set_places(columns)
    return width, height, boxes, chains


def _untangle(columns: list[list[_Box]], chains: Sequence[Sequence[_Box]]) -> None:
    """Orders each column by the middle of its neighbours (barycentre), forth and back a few times."""
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for chain in chains:
        for left, right in itertools.pairwise(chain):
            before.setdefault(right.name, []).append(left.name)
            after.setdefault(left.name, []).append(right.name)
    for turn in range(6):
        neighbours = after if turn % 2 else before
        for column in reversed(columns) if turn % 2 else columns:
            place = {box.name: row for other in columns for row, box in enumerate(other)}
            middle = {
                box.name: sum(place[name] for name in near) / len(near) if (near := neighbours.get(box.name)) else place[box.name]
                for box in column
            }
            column.sort(key=lambda box: middle[box.name])


def _set_places(columns: Sequence[Sequence[_Box]]) -> tuple[float, float]:
    """Gives each box its place; returns the size of the drawing."""
    heights = [sum(box.height + _ROW for box in column) - _ROW for column in columns]
    tallest = max(heights, default=0)
    x = float(_MARGIN)
    for column, height in zip(columns, heights, strict=True):
        widest = max((box.width for box in column), default=0)
        y = _MARGIN + (tallest - height) / 2
        for box in column:
            box.x, box.y = x + (widest - box.width) / 2, y + box.height / 2
            y += box.height + _ROW
        x += widest + _COLUMN
    return max(x - _COLUMN, 0) + _MARGIN, tallest + 2 * _MARGIN


def _path(chain: Sequence[_Box]) -> str:
    path = f"M{chain[0].x + chain[0].width:.1f} {chain[0].y:.1f}"
    for left, right in itertools.pairwise(chain):
        x1, x2 = left.x + left.width, right.x - (5 if right.step else 0)
        middle = (x1 + x2) / 2
        path += f" C{middle:.1f} {left.y:.1f} {middle:.1f} {right.y:.1f} {x2:.1f} {right.y:.1f}"
    return path


def _edge_svg(chain: Sequence[_Box], labels: Sequence[str]) -> str:
    path = _path(chain)
    end = chain[-1]
    title = html.escape(f"{chain[0].name} → {end.name}" + (f": {', '.join(labels)}" if labels else ""))
    head = f"M{end.x:.1f} {end.y:.1f} l-7 -4 v8 z"
    return (
        f'<g><title>{title}</title><path d="{path}" fill="none" {_paint(stroke=_LINE)} stroke-width="1.5"/>'
        f'<path d="{head}" {_paint(fill=_LINE)}/></g>'
    )


def _step_svg(box: _Box, state: str | None) -> str:
    assert box.step is not None
    note = _note(box.step)
    colour = _STATE_COLOURS.get(state or "", _LINE)
    dashes = ' stroke-dasharray="4 3"' if box.step.options.when is not None or state == "skipped" else ""
    title = html.escape("\n".join(part for part in (box.name, note, state or "") if part))
    x, y, middle = box.x, box.y - box.height / 2, box.x + box.width / 2
    shape = f'width="{box.width:.1f}" height="{box.height}" rx="6" {_paint(fill=_PAPER, stroke=colour)} stroke-width="1.5"{dashes}'
    shadow = f'<rect x="{x + 4:.1f}" y="{y + 4:.1f}" {shape}/>' if box.step.scope else ""  # a stack: one task per item
    text = f'<text x="{middle:.1f}" y="{box.y + (-2 if note else 4.5):.1f}" text-anchor="middle" {_paint(fill=_TEXT)}>{html.escape(_short(box.name))}</text>'
    if note:
        text += (
            f'<text x="{middle:.1f}" y="{box.y + 13:.1f}" text-anchor="middle" font-size="11" {_paint(fill=_FAINT)}>'
            f"{html.escape(_short(note))}</text>"
        )
    return f'<g><title>{title}</title>{shadow}<rect x="{x:.1f}" y="{y:.1f}" {shape}/>{text}</g>'


def _paint(**colours: str) -> str:
    """The colours of a shape as style, and their fallbacks as attributes: sites that show code take styles away, and an SVG without any is black."""
    plain = " ".join(f'{name}="{colour.rpartition(", ")[2].rstrip(")")}"' for name, colour in colours.items())
    return f'{plain} style="{";".join(f"{name}:{colour}" for name, colour in colours.items())}"'


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
