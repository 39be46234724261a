"""From the nesting of a flow to methods and the way from each to the next: who calls `self.next` how, and what a join takes over.

A step cell is one method. Where the class needs more (a first step before two that begin at once, a join that only joins, the
evaluation of --foreach behind a step that cannot do it), a method without a cell is put between.

`Method.sees` is the proof that values come from where the notebook takes them: name → the steps whose value may stand there, oldest
first. Each read is compared with what the notebook's own linking found; where the two differ the export is refused, so a class is
never silently another flow.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from flowbook.errors import DefinitionError, Finding
from flowbook.spec.body import Body
from flowbook.spec.export_nest import Cell, Fan, Maybe, One, Part, Row, Side, cells_of
from flowbook.spec.export_text import parse
from flowbook.spec.flow import Input

Sees = Mapping[str, tuple[str, ...]]
TASK_WORDS = frozenset({"ok", "error", "state", "step", "run", "table"})  # of a task in a notebook; an input of a class has only artifacts


@dataclass(frozen=True)
class Carry:
    """A join takes a name over: from the branch that ends in `leaf`, from any input if that is None; only if it is there, unless `sure`.

    Not `lasting`: only the join's own body reads it. `told`: the attribute that says whether it is there, where inputs may be none.
    """

    name: str
    leaf: str | None
    sure: bool
    lasting: bool
    told: str = ""


@dataclass(frozen=True)
class Tasks:
    """How a join reaches a joined step: through the branch that ends in `leaf`, or through all inputs; there by an attribute, or itself."""

    leaf: str | None
    attribute: str = ""


@dataclass
class Method:
    """One method of the class. `cell` is None for one that only leads on."""

    name: str
    scope: tuple[str, ...]
    cell: Cell | None = None
    joins: str = ""  # "split", "foreach", or "" for a method without inputs
    carries: list[Carry] = field(default_factory=list)
    joined: dict[str, Tasks] = field(default_factory=dict)  # by joined step
    kept: dict[str, Tasks] = field(default_factory=dict)  # by attribute: for joins further down
    recalled: dict[str, str] = field(default_factory=dict)  # joined step → the attribute that a join above kept; "" for self
    targets: list[str] = field(default_factory=list)
    fan: Cell | None = None  # the foreach step whose items it gives
    choice: Maybe | None = None  # what it decides
    other: str = ""  # the way on when the choice is no
    sees: Sees = field(default_factory=dict)
    lined: tuple[str, ...] = ()
    told: dict[str, str] = field(default_factory=dict)  # attribute → the name of which it tells whether it is there, for a join below
    markers: dict[str, str] = field(default_factory=dict)  # a step that the choice asks for → a name that it makes whenever it runs

    @property
    def is_last(self) -> bool:
        return not self.targets and not self.other

    @property
    def plans(self) -> bool:
        return self.fan is not None or self.choice is not None


@dataclass(frozen=True)
class Exit:
    """A loose end: the method, and whether it simply leads on ("next"), is one branch ("branch"), or the choice's no ("else")."""

    method: Method
    kind: str = "next"

    def lead(self, target: str) -> None:
        if self.kind == "else":
            self.method.other = target
        else:
            self.method.targets.append(target)


@dataclass(frozen=True)
class Open:
    """What the next method follows. With `region` "split" or "foreach" it must be a join; `inside` are the cells behind each exit."""

    exits: tuple[Exit, ...] = ()
    sees: Sees = field(default_factory=dict)
    region: str = ""
    inside: tuple[frozenset[str], ...] = ()
    host: Method | None = None  # of a fan-out


def weave(cells: tuple[Cell, ...], row: Row, taken: frozenset[str]) -> list[Method]:
    """The methods, in the order of the class. `taken` are names that methods may not have. Raises DefinitionError."""
    loom = _Loom({cell.name: cell for cell in cells}, row, set(taken))
    loom.finish(loom.row(row, Open()))
    return loom.methods


class _Loom:
    def __init__(self, cells: Mapping[str, Cell], row: Row, taken: set[str]) -> None:
        self.cells, self.taken = cells, taken
        self.left = list(cells_of(row))
        self.maybes = frozenset(_in_maybes(row, False))
        self.methods: list[Method] = []
        self.scope: tuple[str, ...] = ()
        self.telling: frozenset[str] = frozenset()  # attributes of `Method.told` that joins further in must hand on
        self.beside: frozenset[str] = frozenset()  # cells of other branches: nothing flows to them from here
        self.kept: dict[str, str] = {}  # joined step → the attribute that holds its tasks
        self.inner: dict[str, str] = {}  # joined step → the attribute of the last task of its item that holds its task
        self.lined: dict[str, tuple[str, ...]] = {}

    # ---- parts ----

    def row(self, row: Row, open_: Open) -> Open:
        self.lined |= {group[0]: group for group in row.lined}
        for part in row.parts:
            open_ = self.part(part, open_)
        return open_

    def part(self, part: Part, open_: Open) -> Open:
        if isinstance(part, One):
            method = self.enter(open_, part.cell, self.cells[part.cell])
            return Open((Exit(method),), method.sees)
        if isinstance(part, Fan):
            return self._fan(part, open_)
        return self._side(part, open_) if isinstance(part, Side) else self._maybe(part, open_)

    def _side(self, part: Side, open_: Open) -> Open:
        first = [next(cells_of(branch)) for branch in part.branches]
        host = self._host(open_, f"to_{'_'.join(first[:2])}{'_and_more' if len(first) > 2 else ''}")
        leaves, inside, every = [], [], set(cells_of(part))
        beside = self.beside
        for branch in part.branches:
            self.beside = beside | (every - set(cells_of(branch)))
            leaves.append(self._closed(self.row(branch, Open((Exit(host, "branch"),), host.sees))))
            inside.append(frozenset(cells_of(branch)))
        self.beside = beside
        return Open(tuple(map(Exit, leaves)), {}, "split", tuple(inside))

    def _fan(self, part: Fan, open_: Open) -> Open:
        cell = self.cells[part.cell]
        host = self._host(open_, f"items_of_{part.cell}", cell)
        host.fan = cell
        self._check_reads(cell, cell.step.plan_inputs, host.sees)
        outer, telling = self.scope, self.telling
        told = self._tell(host, set(cells_of(part)))
        self.scope, self.telling = cell.step.scope, telling | told.keys()
        leaf = self._closed(self.row(part.inner, Open((Exit(host, "branch"),), {**host.sees, **told})))
        self.scope, self.telling = outer, telling
        return Open((Exit(leaf),), {}, "foreach", (frozenset(cells_of(part.inner)),), host)

    def _maybe(self, part: Maybe, open_: Open) -> Open:
        cell = self.cells[part.cell]
        host = self._host(open_, f"when_{part.cell}", cell, part)
        host.choice = part
        if part.when is not None:
            self._check_reads(cell, cell.step.plan_inputs, host.sees)
        for name in part.lacks:
            self._check_absence(cell, name, host.sees)
        host.markers = {name: self._marker(name, cell) for name in part.ran}
        inner = self.row(part.inner, Open((Exit(host, "branch"),), host.sees))
        if inner.region:
            leaf = self._between(inner, "")
            inner = Open((Exit(leaf),), leaf.sees)
        return Open((*inner.exits, Exit(host, "else")), inner.sees)

    # ---- loose ends ----

    def _host(self, open_: Open, name: str, cell: Cell | None = None, choice: Maybe | None = None) -> Method:
        """The method that splits, fans out or chooses next: the one before if it can do that, else one put between."""
        alone = open_.exits[0] if len(open_.exits) == 1 and not open_.region else None
        if alone is not None and alone.kind == "next" and (cell is None or can_host(alone.method, cell, choice)):
            return alone.method
        return self._between(open_, name)

    def _closed(self, open_: Open) -> Method:
        """The one method that ends a branch."""
        alone = open_.exits[0] if len(open_.exits) == 1 and not open_.region else None
        return alone.method if alone is not None and alone.kind == "next" else self._between(open_, "")

    def _between(self, open_: Open, name: str) -> Method:
        ends = [exit_.method.name for exit_ in open_.exits]
        if not ends:
            name = "start"
        elif open_.host is not None and open_.host.fan is not None:
            name = f"join_{open_.host.fan.name}"
        elif open_.region:
            name = f"join_{'_'.join(ends[:2])}{'_and_more' if len(ends) > 2 else ''}"
        return self.enter(open_, name or f"after_{ends[0]}", None)

    def finish(self, open_: Open) -> None:
        """The last method: that of a cell, if one comes after all others."""
        alone = open_.exits[0] if len(open_.exits) == 1 and not open_.region else None
        if alone is None or alone.kind != "next":
            self.enter(open_, "end", None)

    # ---- one method ----

    def enter(self, open_: Open, name: str, cell: Cell | None) -> Method:
        method = Method(name if cell is not None else self._free(name), self.scope if cell is None else cell.step.scope, cell)
        for exit_ in open_.exits:
            exit_.lead(method.name)
        if cell is not None:
            method.lined = self.lined.pop(cell.name, ())
        sees = dict(open_.sees)
        if open_.region:
            method.joins = open_.region
            sees = self._join(method, open_)
        if cell is not None:
            self._check_reads(cell, cell.step.inputs, sees)
            self._recall(method, cell, sees)
            self.left.remove(cell.name)
            for made in (*cell.artifacts, *([cell.step.options.catch] if cell.step.options.catch else [])):
                sees[made] = (cell.name,) if made in cell.step.certain else (*sees.get(made, ()), cell.name)
        method.sees = sees
        self.methods.append(method)
        return method

    def _free(self, name: str) -> str:
        stem, number, name = name[:56], 1, name[:56]
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        return name

    # ---- what a join takes over ----

    def _join(self, method: Method, open_: Open) -> dict[str, tuple[str, ...]]:
        leaves = [exit_.method for exit_ in open_.exits]
        needed: dict[str, set[str]] = {}
        own: set[str] = set()  # read by this join itself
        lasting: set[str] = set()
        for cell in self._behind():
            for given in self._lasting_reads(cell):
                makers = {maker for maker in given.makers if maker not in self.left}
                needed.setdefault(given.name, set()).update(makers)
                (own if cell is method.cell else lasting).add(given.name)
        needed |= {attribute: set() for attribute in self.telling}
        captured = self._joined_steps(method, open_, leaves, needed)
        sees: dict[str, tuple[str, ...]] = {}
        for name, makers in needed.items():
            attribute = name in {*self.kept.values(), *self.inner.values(), *self.telling}
            if not makers and not attribute:
                continue
            where = self._source(method, name, makers, open_, leaves)
            if where is None:
                continue
            leaf = leaves[where]
            sure = attribute or self._is_sure(name, makers)
            carry = Carry(name, None if open_.host is not None else leaf.name, sure, name not in own or name in lasting)
            if open_.host is not None and not sure:
                carry = replace(carry, told=self._told(open_.host, name))
            method.carries.append(carry)
            sees[name] = leaf.sees.get(name, ())
        for bound in captured:
            sees[bound] = (method.name,)
        method.carries.sort(key=lambda carry: (carry.leaf or "", carry.name))
        return sees

    def _is_sure(self, name: str, makers: Collection[str]) -> bool:
        return any(maker not in self.maybes and self.cells[maker].surely_makes(name) for maker in makers)

    def _tell(self, host: Method, inside: set[str]) -> dict[str, tuple[str, ...]]:
        """The attributes by which a fan-out's join will know which names are there, as far as steps behind it may need them."""
        needed: dict[str, set[str]] = {}
        for cell in self._behind():
            for given in self._lasting_reads(cell) if cell.name not in inside else ():
                needed.setdefault(given.name, set()).update(m for m in given.makers if m not in self.left)
            for joined in cell.step.options.join if cell.name not in inside else ():
                if joined not in self.left and joined not in self.kept and joined not in self.inner:
                    for artifact, maker in self._seen_through(self.cells[joined], cell):
                        needed.setdefault(artifact, set()).add(maker)
        unsure = [name for name, makers in needed.items() if makers and name in host.sees and not self._is_sure(name, makers)]
        return {self._told(host, name): (host.name,) for name in unsure}

    def _told(self, host: Method, name: str) -> str:
        """The attribute by which the step that fans out tells whether a name is there: with no item there is nothing else to ask."""
        attribute = next((a for a, of in host.told.items() if of == name), None) or self._free(f"has_{name}")
        host.told[attribute] = name
        return attribute

    def _behind(self) -> list[Cell]:
        """The cells that come after this place, as far as they are not in other branches."""
        return [self.cells[name] for name in self.left if name not in self.beside]

    def _lasting_reads(self, cell: Cell) -> Iterator[Input]:
        for given in cell.reads:
            if given.makers and not self._is_import(given):
                yield given

    def _is_import(self, given: Input) -> bool:
        return bool(given.makers) and self.cells[given.makers[0]].kind(given.name) == "import"

    def _joined_steps(self, method: Method, open_: Open, leaves: list[Method], needed: dict[str, set[str]]) -> list[str]:
        """What this join and later ones need of the steps they join: their tasks, or, further in, their artifacts.

        Gives the attributes in which tasks are kept from here on.
        """
        before = set(method.kept)
        for reader in self._behind():
            for name in reader.step.options.join:
                if name in self.left:
                    continue
                at = next((i for i, inside in enumerate(open_.inside) if name in inside), None)
                if name in self.kept:
                    if self.kept[name] not in method.kept:
                        needed.setdefault(self.kept[name], set())
                elif at is not None and method.scope == reader.base:
                    self._capture(method, open_, reader, name, leaves[at])
                elif name in self.inner:
                    if self.inner[name] not in method.kept:
                        needed.setdefault(self.inner[name], set())
                elif at is not None and self._is_hidden(name, at, open_):
                    self.inner[name] = self._free(f"{name}_task")
                    method.kept[self.inner[name]] = Tasks(leaves[at].name)
                else:
                    for artifact, maker in self._seen_through(self.cells[name], reader):
                        needed.setdefault(artifact, set()).add(maker)
        return [attribute for attribute in method.kept if attribute not in before]

    def _capture(self, method: Method, open_: Open, reader: Cell, name: str, leaf: Method) -> None:
        """The tasks of a joined step are the inputs of this join: bound if it is the reader itself, else kept for it."""
        tasks = Tasks(None if open_.region == "foreach" else leaf.name, self.inner.get(name, ""))
        if not tasks.attribute:
            self._check_leaf(self.cells[name], reader, leaf.sees)
        if method.cell is reader:
            method.joined[name] = tasks
        else:
            self.kept[name] = self._free(f"{name}_tasks" if tasks.leaf is None else f"{name}_task")
            method.kept[self.kept[name]] = tasks

    def _is_hidden(self, name: str, at: int, open_: Open) -> bool:
        """Whether another branch makes a name that the step makes, too, so that a join cannot take over both by name."""
        others = [inside for i, inside in enumerate(open_.inside) if i != at]
        return any(self._makes(artifact, inside) for artifact in self.cells[name].artifacts for inside in others)

    def _seen_through(self, cell: Cell, reader: Cell) -> list[tuple[str, str]]:
        """(name, maker) of what a task of a joined step gives: its artifacts, and the items of the fan-outs around it."""
        around = [self.cells[name] for name in cell.step.scope[len(reader.base) :] if name != cell.name]
        items = [(name, fan.name) for fan in around if fan.step.options.foreach for name in fan.step.options.foreach.names]
        return [(name, cell.name) for name in cell.artifacts if not cell.kind(name)] + [
            each for each in items if not each[0].startswith("_")
        ]

    def _source(self, method: Method, name: str, makers: set[str], open_: Open, leaves: list[Method]) -> int | None:
        """Behind which leaf the value stands."""
        owners = [i for i, inside in enumerate(open_.inside) if makers & inside]
        if not owners:
            free = [i for i, leaf in enumerate(leaves) if not self._makes(name, open_.inside[i]) and name in leaf.sees]
            if free:
                return free[0]
            if not any(name in leaf.sees for leaf in leaves):
                return None
            owners = [0, 1]
        if len(owners) == 1:
            return owners[0]
        found = ", ".join(sorted(makers)) or method.name
        where = method.cell.where if method.cell is not None else f"behind {', '.join(leaf.name for leaf in leaves)}"
        raise DefinitionError(
            Finding(where, f"`{name}` is made in more than one branch ({found})", "Give it another name in each of these steps.")
        )

    def _makes(self, name: str, cells: frozenset[str]) -> bool:
        return any(name in self.cells[cell].artifacts for cell in cells)

    # ---- proofs ----

    def _check_reads(self, cell: Cell, reads: tuple[Input, ...], sees: Sees) -> None:
        for given in reads:
            kinds = {self.cells[maker].kind(given.name) == "import" for maker in given.makers}
            if kinds == {True, False}:
                raise DefinitionError(
                    Finding(cell.where, f"`{given.name}` is a module in one step above and a value in another", "Rename one.")
                )
            if kinds == {False} and sees.get(given.name, ()) != tuple(reversed(given.makers)):
                raise DefinitionError(self._other_value(cell, given, sees))

    def _other_value(self, cell: Cell, given: Input, sees: Sees) -> Finding:
        there = ", ".join(sees.get(given.name, ())) or "no step"
        wanted = ", ".join(reversed(given.makers))
        what = f"`{given.name}` comes from {wanted}, and in a class it would come from {there}: the steps cannot be brought into one order"
        return Finding(cell.where, what, f"Use another name for `{given.name}` in one of these steps.")

    def _check_absence(self, cell: Cell, name: str, sees: Sees) -> None:
        """Whether a name is there tells whether the step runs only if no older value of it can be there."""
        given = next(given for given in cell.reads if given.name == name and given.required)
        if self._is_import(given):
            raise DefinitionError(
                Finding(cell.where, f"`{name}` is imported by {given.makers[0]}, which may be skipped", "Import it in this step, too.")
            )
        if set(sees.get(name, ())) != set(given.makers):
            raise DefinitionError(self._other_value(cell, given, sees))

    def _marker(self, name: str, reader: Cell) -> str:
        """A name that a step makes whenever it runs, and no other step: whether it is there tells whether the step has run."""
        cell = self.cells[name]
        for artifact in cell.artifacts:
            makers = [other for other in self.cells.values() if artifact in other.artifacts]
            if len(makers) == 1 and cell.surely_makes(artifact) and not cell.kind(artifact):
                return artifact
        what = f"it joins {name}, which may be skipped and makes no name of its own, so that a class cannot tell whether it has run"
        raise DefinitionError(Finding(reader.where, what, f"Assign a name in {name} that no other step assigns."))

    def _check_leaf(self, cell: Cell, reader: Cell, sees: Sees) -> None:
        """The names of a joined step, read through the last task of its branch or item, must still be those of the step."""
        used = {node.attr for node in ast.walk(parse(reader.step.source)) if isinstance(node, ast.Attribute)}
        for name, _ in self._seen_through(cell, reader):
            makers = sees.get(name, ())
            if makers and makers[-1] != cell.name and makers[-1] not in cell.step.scope and name in used:
                what = f"it reads `{name}` of {cell.name}, and {makers[-1]}, which comes after {cell.name}, makes `{name}` again"
                raise DefinitionError(
                    Finding(reader.where, what, "In a class the later value hides the earlier one: use another name for one.")
                )

    def _recall(self, method: Method, cell: Cell, sees: Sees) -> None:
        """Joined steps that this method is not itself the join of."""
        for name in cell.step.options.join:
            if name in method.joined:
                continue
            method.recalled[name] = self.kept.get(name, "")
            if name not in self.kept:
                self._check_leaf(self.cells[name], cell, sees)
                _check_only_attributes(cell, name)


def _check_only_attributes(cell: Cell, name: str) -> None:
    """`self` stands for a task that was not joined by a split or foreach, so it must not leave the method."""
    tree = parse(cell.step.source)
    bare = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))
    read = sum(isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == name for n in ast.walk(tree))
    if bare != read:
        raise DefinitionError(
            Finding(
                cell.where, f"it joins {name}, which no split or fan-out closes here, and uses it as a whole", f"Read {name}.NAME only."
            )
        )


def can_host(method: Method, cell: Cell, choice: Maybe | None) -> bool:
    """Whether a method can evaluate --foreach or --when of the step after it: the names must mean there what they mean in the notebook."""
    if method.plans or method.targets:
        return False
    if method.cell is None:
        return True
    if method.cell.step.options.catch is not None:
        return False
    wanted: list[Body] = [body for body in (cell.when if choice else cell.foreach,) if body is not None]
    makers = {given.name: given.makers for given in cell.step.plan_inputs}
    foreach = method.cell.step.options.foreach
    own = {*(foreach.names if foreach else ()), *method.cell.step.options.join}
    for name in {name for body in wanted for name in (*body.reads, *body.builtin_reads)}:
        binds = method.cell.body.binds(name) or name in method.cell.body.changes or name in own
        made_here = makers.get(name, ())[:1] == (method.cell.name,) and name in method.cell.artifacts
        if binds and not (made_here and method.cell.surely_makes(name)):
            return False
        if name in cell.step.options.join and name not in method.joined:
            return False
    return True


def _in_maybes(part: Part | Row, inside: bool) -> Iterator[str]:
    if isinstance(part, One):
        yield from [part.cell] if inside else []
    elif isinstance(part, Fan | Maybe):
        yield from _in_maybes(part.inner, inside or isinstance(part, Maybe))
    else:
        for inner in part.branches if isinstance(part, Side) else part.parts:
            yield from _in_maybes(inner, inside)


def task_words(cell: Cell, artifacts: Collection[str]) -> str | None:
    """A word of the notebook's tasks that the body uses on a joined step or its tasks, and that a join of a class does not know.

    `artifacts` are those of the joined steps; one that is called `table` is not the table of all tasks.
    """
    tree = parse(cell.step.source)
    tasks = set(cell.step.options.join)
    words = TASK_WORDS - ({"table"} & set(artifacts))
    for _ in range(2):  # names that stand for tasks, and those made from such names
        for node in ast.walk(tree):
            tasks |= _bound_to_tasks(node, tasks)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in words and _root(node.value) in tasks:
            return f".{node.attr}"
        key = node.slice.value if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) else None
        if isinstance(node, ast.Subscript) and isinstance(key, str) and _root(node.value) in tasks:
            return f'["{key}"]'
    return None


def _bound_to_tasks(node: ast.AST, tasks: set[str]) -> set[str]:
    if isinstance(node, ast.For | ast.comprehension) and _names(node.iter) & tasks:
        return _names(node.target)
    if isinstance(node, ast.Call) and _names(node) & tasks:
        lambdas = [k.value for k in node.keywords] + list(node.args)
        return {a.arg for value in lambdas if isinstance(value, ast.Lambda) for a in value.args.args}
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call | ast.Subscript | ast.Name) and _task_valued(node.value, tasks):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return set()


def _task_valued(value: ast.expr, tasks: set[str]) -> bool:
    if isinstance(value, ast.Call):
        return (
            isinstance(value.func, ast.Name) and value.func.id in ("max", "min", "next", "sorted", "list") and bool(_names(value) & tasks)
        )
    return _root(value) in tasks


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


__all__ = ["Carry", "Method", "can_host", "task_words", "weave"]
