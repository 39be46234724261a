"""A flow of step cells as the text of a Python file: the FlowSpec class that is the same flow.

    Notebook   all that the text is made of: the steps as linked, parameters, what stands at the top of the file
    export     Notebook → the text. Raises DefinitionError with all that has no equal in a class; never writes another flow instead

A step becomes a method of its name. A body stays as it is written: at the top of the method stand the names it reads
(``rates = self.rates``), at the end those it makes (``self.score = score``). So the body runs as it ran, with changes in place, nested
functions and all; rewriting every use of a name into an attribute would not survive the first lambda. Only a name that occurs once in
its body, as the target of an assignment, is made an attribute there and then (``self.rates = [1, 2]``), which is how people write it.

What a body binds becomes local to the method. Where that would be seen (functions outside the body read the name, the name shadows
one of the file or a builtin that the body reads before, a class must be found by its name) the method says `global`, which is what a
cell's names are. How the graph nests is in export_nest.py, who follows whom and what joins take over in export_way.py.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flowbook.errors import DefinitionError, Finding
from flowbook.spec import export_text as texts
from flowbook.spec.body import Body, read_body
from flowbook.spec.export_nest import Cell, nest
from flowbook.spec.export_text import Edit, call, quoted
from flowbook.spec.export_way import Carry, Method, Tasks, task_words, weave
from flowbook.spec.flow import Card, Checkpoint, Input, Options, Resources, Retry
from flowbook.spec.flowspec import RESERVED, FlowSpec
from flowbook.spec.secrets import Secret

INDENT = " " * 8
GIVEN = ("card", "checkpoint", "current", "load_checkpoint", "save_checkpoint")  # builtins of step cells, imported by the file
WORDS = RESERVED | {name for name in vars(FlowSpec) if not name.startswith("__")}


@dataclass(frozen=True)
class ParameterText:
    """A parameter; `default` is the text of its value, `kind` that of its type."""

    name: str
    default: str
    kind: str
    help: str = ""


@dataclass(frozen=True)
class Notebook:
    """What is exported. `blocks` are texts for the top of the file, in order: constants, functions, classes, %%flowsetup cells."""

    flow: str
    cells: tuple[Cell, ...]
    parameters: tuple[ParameterText, ...] = ()
    imports: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    bound: frozenset[str] = frozenset()  # names that imports and blocks bind
    shared: frozenset[str] = frozenset()  # names that functions and classes of `blocks` use as globals
    futures: frozenset[str] = frozenset()  # of `blocks`
    seeds: tuple[str, ...] = ()  # statements of %%flowsetup that seed a generator: each task begins with them, whatever seeded it before
    origin: str = ""  # the notebook's file name


def export(notebook: Notebook, class_name: str | None = None) -> str:
    """The text of the file. Raises DefinitionError with all findings."""
    findings = list(refusals(notebook))
    if findings:
        raise DefinitionError(*findings)
    row = nest(notebook.cells)
    steps = frozenset(cell.name for cell in notebook.cells)
    artifacts = {name for cell in notebook.cells for name in (*cell.step.saves, *(i.name for i in cell.reads))}
    taken = steps | artifacts | WORDS | {p.name for p in notebook.parameters} | notebook.bound
    methods = weave(notebook.cells, row, frozenset(taken))
    writer = _Writer(notebook, class_name or class_of(notebook), methods)
    text = writer.text()
    _check_syntax(text, methods)
    return text


def class_of(notebook: Notebook) -> str:
    """The class has the flow's name where Python allows: then runs of both are runs of one flow, and tasks draw the same numbers."""
    name = notebook.flow
    taken = {*notebook.bound, *(n for cell in notebook.cells for n in cell.step.saves), *dir(builtins), "FlowSpec", "Parameter", *GIVEN}
    if not name.isidentifier() or keyword.iskeyword(name):
        name = "".join(part[:1].upper() + part[1:] for part in re.split(r"\W+", name))
        name = name if name[:1].isalpha() else f"Flow{name}"
    return f"{name}Flow" if name in taken else name


def _check_syntax(text: str, methods: Iterable[Method]) -> None:
    try:
        compile(text, "<export>", "exec", dont_inherit=True)
    except SyntaxError as error:
        line = text.split("\n")[: error.lineno or 1]
        name = next((found[1] for each in reversed(line) if (found := re.match(r"    def (\w+)\(", each))), "")
        where = next((m.cell.where for m in methods if m.name == name and m.cell is not None), name or "the file")
        shown = line[-1].strip() if line else ""
        raise DefinitionError(
            Finding(where, f"as a method it is not Python: {error.msg}: {shown}", "Write that statement in another way.")
        ) from None


# ---- what has no equal in a class ---------------------------------------------------------------------------------------------


def refusals(notebook: Notebook) -> Iterator[Finding]:
    """Everything that has no equal in a class, and what to do instead."""
    if not notebook.cells:
        yield Finding(f"flow {notebook.flow}", "it has no step", "A cell that begins with `%%flowstep NAME` defines one.")
    parameters = {parameter.name for parameter in notebook.parameters}
    for name in sorted(parameters & WORDS):
        yield Finding(f"parameter {name}", "a FlowSpec has an attribute of that name", "Rename it.")
    artifacts = {cell.name: cell.artifacts for cell in notebook.cells}
    for cell in notebook.cells:
        yield from _refused_options(cell)
        yield from _refused_names(cell)
        yield from _refused_code(cell, [name for step in cell.step.options.join for name in artifacts[step]])


def _refused_options(cell: Cell) -> Iterator[Finding]:
    options = cell.step.options
    if options.always:
        yield Finding(cell.where, "--always has no equal in a class", "Remove it, or do that work in a function with @exit_hook.")
    if options.min_ok is not None:
        yield Finding(
            cell.where, "--min-ok has no equal in a class", "Let the body catch the error and make a name that says so; or use --catch."
        )
    for body, option in ((cell.foreach, "--foreach"), (cell.when, "--when")):
        if body is not None and body.calls_random:
            yield Finding(
                cell.where, f"{option} draws random numbers, which a class would draw from another seed", "Assign them in the step above."
            )


def _refused_names(cell: Cell) -> Iterator[Finding]:
    if cell.name in WORDS:
        yield Finding(cell.where, f"a FlowSpec has an attribute {cell.name!r}", "Rename the step.")
    for name in sorted(set(cell.artifacts) & WORDS):
        yield Finding(cell.where, f"`{name}` cannot be an artifact: a FlowSpec has an attribute of that name", "Use another name.")
    body = cell.body
    if body.binds("self") or "self" in body.reads:
        yield Finding(cell.where, "`self` is the flow inside a method", "Use another name.")
    if (catch := cell.step.options.catch) and body.binds(catch):
        yield Finding(cell.where, f"the body assigns `{catch}`, where --catch puts the error", "Use another name.")


def _refused_code(cell: Cell, joined: list[str]) -> Iterator[Finding]:
    tree = texts.parse(cell.step.source)
    for node in texts.at_cell_level(tree):
        if isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) or (isinstance(node, ast.comprehension) and node.is_async):
            yield Finding(cell.where, "`await` at the top level has no equal in a method", "Write asyncio.run(…).")
            break
    for name in _blind_calls(tree):
        yield Finding(cell.where, f"{name} gives something else in a method than in a cell", "Name the variables, or use globals().")
    if (mangled := texts.mangled(tree)) is not None:
        yield Finding(cell.where, f"Python changes `{mangled}` inside a class", "Use a name that does not begin with two underscores.")
    if (word := task_words(cell, joined)) is not None:
        remedy = "Keep what you need in an artifact of that step, and read that."
        yield Finding(cell.where, f"it uses {word} of joined tasks; in a class these have only their artifacts", remedy)


def _blind_calls(tree: ast.Module) -> Iterator[str]:
    """Calls that look at the names around them: `exec` without a namespace, locals(), vars(), dir()."""
    for node in texts.at_cell_level(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name, count = node.func.id, len(node.args) + len(node.keywords)
            if (name in ("locals", "vars", "dir") and not count) or (name == "exec" and count == 1):
                yield f"{name}({'…' if count else ''})"


# ---- writing ---------------------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, notebook: Notebook, class_name: str, methods: list[Method]) -> None:
        self.notebook, self.name, self.methods = notebook, class_name, methods
        self.cells = {cell.name: cell for cell in notebook.cells}
        self.parameters = frozenset(parameter.name for parameter in notebook.parameters)
        self.shared = notebook.shared | _read_by_definitions(notebook.cells)
        self.used: set[str] = {"FlowSpec", "step"}
        self.imports = set(notebook.imports)
        self.futures = set(notebook.futures)
        assigned = {name for cell in notebook.cells for name in (*cell.body.makes, *cell.body.others)}
        self.clashing = notebook.bound | assigned | self.parameters | {method.name for method in methods}

    def text(self) -> str:
        written = [self.method(method) for method in self.methods]
        parameters = [self.parameter(parameter) for parameter in self.notebook.parameters]
        inside = ["".join(parameters)] if parameters else []
        body = "\n".join([*inside, *written])
        for name in GIVEN:
            if name not in self.notebook.bound and any(name in cell.body.builtin_reads for cell in self.cells.values()):
                self.used.add(name)
        parts = [self.head(), *self.notebook.blocks, f"class {self.name}(FlowSpec):\n{body}".rstrip()]
        return "\n\n\n".join(part.strip("\n") for part in parts) + f'\n\n\nif __name__ == "__main__":\n    {self.name}()\n'

    def head(self) -> str:
        told = f"{self.notebook.origin}" if self.notebook.origin else f"flow {self.notebook.flow}"
        doc = f'"""Flow {self.notebook.flow}, exported from the step cells of {told}.\n\nEdit the notebook and export it again: '
        doc += '`%flow export FILE --check` tells whether the two are still the same.\n"""\n'
        future = [f"from __future__ import {', '.join(sorted(self.futures))}\n\n"] if self.futures else []
        ours = [f"{name} as {shown}" if (shown := self.word(name)) != name else name for name in sorted(self.used)]
        line = f"from flowbook import {', '.join(ours)}"
        if len(line) > texts.WIDTH:
            line = "from flowbook import (\n" + "".join(f"    {name},\n" for name in ours) + ")"
        imports = sorted(self.imports, key=lambda each: (each.startswith("from "), each))
        return doc + "\n" + "".join(future) + "".join(f"{each}\n" for each in imports) + ("\n" if imports else "") + line

    def word(self, name: str) -> str:
        """How the file calls something of flowbook's."""
        return f"flow_{name}" if name in self.clashing and name not in GIVEN and name != "FlowSpec" else name

    def decorate(self, name: str, arguments: Iterable[str] = ()) -> str:
        self.used.add(name)
        given = list(arguments)
        return f"    @{call(self.word(name), given, '    ') if given else self.word(name)}\n"

    def parameter(self, parameter: ParameterText) -> str:
        self.used.add("Parameter")
        kind = parameter.kind
        if kind == "JSONType":
            self.used.add(kind)
            kind = self.word(kind)
        arguments = [quoted(parameter.name), f"default={parameter.default}", *([f"type={kind}"] if kind else [])]
        arguments += [f"help={quoted(parameter.help)}"] if parameter.help else []
        head = f"{parameter.name} = {self.word('Parameter')}"
        return f"    {call(head, arguments, '    ')}\n"

    # ---- one method ----

    def method(self, method: Method) -> str:
        lines = _Lines(self, method)
        head, body, tail = lines.head(), lines.body(), lines.tail()
        edge = "\n" if body.count("\n") > 4 and head else ""
        ending = "\n" if body.count("\n") > 4 and tail else ""
        empty = "" if head or tail or lines.tree.body else f"{INDENT}pass\n"  # comments alone are no body
        content = f"{head}{edge}{body}{empty}{ending}{tail}"
        argument = f", {lines.inputs}" if method.joins else ""
        remark = f"{texts.comment(_lined(method), '    ')}\n" if method.lined else ""
        return f"{remark}{self.decorators(method)}    def {method.name}(self{argument}):\n{content}"

    def decorators(self, method: Method) -> str:
        options = method.cell.step.options if method.cell is not None else Options()
        found = "".join(self.decorate(name, arguments) for name, arguments in decorators_of(options))
        marks = []
        if method is self.methods[0] and method.name != "start" and len(self.methods) > 1:
            marks.append("start=True")
        if method.is_last and method.name != "end" and len(self.methods) > 1:
            marks.append("end=True")
        return found + self.decorate("step", marks)


def _lined(method: Method) -> str:
    return (
        f"{', '.join(method.lined[:-1])} and {method.lined[-1]} follow one another from here on. Some of them could run side by side; their "
        f"graph is not made of splits and joins alone, which is what a class can say."
    )


def _read_by_definitions(cells: Iterable[Cell]) -> frozenset[str]:
    """Names that functions and classes of step bodies use, where other steps may call them."""
    found: set[str] = set()
    known = list(cells)
    for cell in known:
        for name, free in cell.body.deferred.items():
            read = any(cell.name in given.makers and given.name == name for other in known for given in other.reads)
            if cell.kind(name) == "class" or read:
                found |= free
    return frozenset(found)


@dataclass
class _Lines:
    """The lines of one method: what it takes from `self`, the body, and what it gives back."""

    writer: _Writer
    method: Method
    globals: frozenset[str] = frozenset()
    direct: dict[str, Edit] = field(default_factory=dict)  # names that the body itself can assign to self
    inputs: str = "inputs"
    tree: ast.Module = field(default_factory=lambda: ast.Module([], []))
    source: str = ""

    def __post_init__(self) -> None:
        cell = self.method.cell
        if cell is not None:
            self.source = texts.trimmed(cell.step.source)
            self.tree = texts.parse(self.source)
            used = {part.id for part in ast.walk(self.tree) if isinstance(part, ast.Name)}
            self.inputs = next(name for name in ("inputs", "branches", "joined_tasks", "inputs_of_self") if name not in used)
        self.globals = frozenset(self._globals())
        if cell is not None:
            planned = {name for body in self._plan_bodies() for name in (*body.reads, *body.builtin_reads)}
            loaded = {name for name, _ in self._loads()}
            self.direct = {
                name: edit
                for name, edit in texts.sole_assignments(self.tree).items()
                if name in cell.artifacts and name not in self.globals | planned | loaded and not self._is_read_as_self()
            }

    @property
    def options(self) -> Options:
        return self.method.cell.step.options if self.method.cell is not None else Options()

    # ---- global names ----

    def _globals(self) -> set[str]:
        """The names that the method binds and that must be, as in a cell, those of the file."""
        loads = {name for name, _ in self._loads()} | {name for name, _ in self._plan_loads()}
        cell = self.method.cell
        if cell is None:
            return loads & self.writer.shared
        body, foreach = cell.body, cell.step.options.foreach
        at_top = {*(foreach.names if foreach else ()), *cell.step.options.join}
        bound = {*body.makes, *body.others, *body.deletes, *body.changes}
        names = (
            bound
            | loads
            | at_top
            | ({"scratch"} if self._uses_scratch() else set())
            | {given.name for given in cell.step.inputs if self._is_import(given)}
        )
        if body.builtin_reads & {"globals", "eval", "exec"}:
            return names
        there = at_top | {name for name, guarded in self._loads() if not guarded}
        first_read = {*body.reads, *body.builtin_reads} - there  # before the body binds them, as far as one can tell
        found = bound & first_read & {*self.writer.notebook.bound, *body.builtin_reads}
        found |= (bound | loads) & {given.name for given in cell.step.inputs if given.captured}
        found |= {name for name in bound if cell.kind(name) in ("function", "class")}
        found |= names & {name for node in ast.walk(self.tree) if isinstance(node, ast.Global) for name in node.names}
        found |= names & {name for line in self.writer.notebook.seeds for name in read_body(line).reads}
        return found | (names & self.writer.shared)

    def _uses_scratch(self) -> bool:
        """Whether the body, or a function of the file, uses the folder that every step cell is given by that name."""
        cell = self.method.cell
        return cell is not None and "scratch" in {*cell.body.builtin_reads, *self.writer.notebook.shared} - self.writer.notebook.bound

    def _is_import(self, given: Input) -> bool:
        return bool(given.makers) and self.writer.cells[given.makers[0]].kind(given.name) == "import"

    # ---- the top ----

    def head(self) -> str:
        method, lines = self.method, []
        if self.globals:
            lines.append(f"global {', '.join(sorted(self.globals))}")
        lines += self.writer.notebook.seeds if method.cell is not None else ()
        if self._uses_scratch():
            self.writer.used.add("current")
            self.writer.imports.add("import pathlib")
            lines.append("scratch = pathlib.Path(current.tempdir)")
        lines += self._carried()
        lines += [f"self.{name} = {self._through(tasks, kept=True)}" for name, tasks in sorted(method.kept.items())]
        if method.cell is not None:
            lines += self._imported(method.cell)
            lines += self._item()
            lines += [f"{step} = {self._through(tasks)}" for step, tasks in method.joined.items()]
            lines += [f"{step} = {f'self.{name}' if name else 'self'}" for step, name in method.recalled.items()]
            for name, guarded in self._loads():
                lines += self._load(name, guarded)
        return _block(lines)

    def _load(self, name: str, guarded: bool) -> list[str]:
        own = next((carry for carry in self.method.carries if carry.name == name and self._is_own(carry)), None)
        source = f"{self.inputs}.{own.leaf}" if own is not None else "self"
        line = f"{name} = {source}.{name}"
        return [f'if hasattr({source}, "{name}"):', f"    {line}"] if guarded or (own is not None and not own.sure) else [line]

    @staticmethod
    def _is_own(carry: Carry) -> bool:
        """Whether the body takes a value of a branch straight from there, because nothing further down needs it."""
        return not carry.lasting and carry.leaf is not None

    def _carried(self) -> list[str]:
        """What a join takes over for the steps after it."""
        lines: list[str] = []
        if self.method.joins == "foreach":
            asked = dict.fromkeys(carry.told or carry.name for carry in self.method.carries)
            lines += _merge(self.inputs, [quoted(name) for name in asked]) if asked else []
            for carry in self.method.carries:
                merge = _merge(self.inputs, [quoted(carry.name)])
                lines += [f"if self.{carry.told}:", *(f"    {line}" for line in merge)] if carry.told else []
            return lines
        for carry in self.method.carries:
            lines += [] if self._is_own(carry) else self._from_branch(carry)
        return lines

    def _from_branch(self, carry: Carry) -> list[str]:
        line = f"self.{carry.name} = {self.inputs}.{carry.leaf}.{carry.name}"
        return [line] if carry.sure else [f'if hasattr({self.inputs}.{carry.leaf}, "{carry.name}"):', f"    {line}"]

    def _through(self, tasks: Tasks, kept: bool = False) -> str:
        """The joined tasks as an expression; what is kept must be a value of its own."""
        if tasks.leaf is not None:
            return ".".join(part for part in (self.inputs, tasks.leaf, tasks.attribute) if part)
        if tasks.attribute:
            return f"[task.{tasks.attribute} for task in {self.inputs}]"
        return f"list({self.inputs})" if kept else self.inputs

    def _imported(self, cell: Cell) -> list[str]:
        """Imports of steps above, again: a module is no artifact."""
        found: dict[str, None] = {}
        for given in cell.step.inputs:
            for maker in given.makers:
                if self._is_import(given):
                    found.update(dict.fromkeys(imports_of(self.writer.cells[maker], given.name)))
        return list(found)

    def _item(self) -> list[str]:
        foreach = self.options.foreach
        if foreach is None or self.method.cell is None:
            return []
        name = foreach.target
        if name.isidentifier() and name in self.method.cell.artifacts and self._item_is_saved_at_once(name):
            return [f"self.{name} = {name} = self.input"]
        return [f"{foreach.target} = self.input"]

    def _item_is_saved_at_once(self, name: str) -> bool:
        assert self.method.cell is not None
        return name not in self.globals and not self.method.cell.body.binds(name) and not self._is_read_as_self()

    def _is_read_as_self(self) -> bool:
        """Whether a joined step is read through `self`, which the body must then leave as it is until its end."""
        return any(not attribute for attribute in self.method.recalled.values())

    def _loads(self) -> list[tuple[str, bool]]:
        """(name, guarded) of what the body reads of `self`; guarded: only if it is there."""
        cell = self.method.cell
        if cell is None:
            return []
        found: dict[str, bool] = {}
        lacks = {
            name for method in self.writer.methods if method.choice and method.choice.cell == cell.name for name in method.choice.lacks
        }
        for given in cell.step.inputs:
            if given.makers and not self._is_import(given):
                sure = any(self._surely(maker, given.name) for maker in given.makers)
                found[given.name] = not (sure or given.name in lacks or (given.required and not given.captured))
        parameters = {name for name in cell.step.params if self._mentions(cell, name)} & self.writer.parameters
        return sorted({**dict.fromkeys(parameters, False), **found}.items())

    def _mentions(self, cell: Cell, name: str) -> bool:
        """Whether the body needs a parameter: its plan's parameters stand among those of the step as well."""
        return name in cell.body.reads or name in cell.body.builtin_reads or name in self.writer.shared

    def _surely(self, maker: str, name: str) -> bool:
        chosen = {cell for method in self.writer.methods if method.choice for cell in [method.choice.cell]}
        cell = self.writer.cells[maker]
        return maker not in chosen and name in cell.step.certain

    # ---- the body ----

    def body(self) -> str:
        cell = self.method.cell
        if cell is None or not self.source.strip():
            return ""
        self.writer.futures |= texts.futures(self.tree)
        edits = [*texts.global_edits(self.tree, self.globals), *texts.future_edits(self.tree), *self.direct.values()]
        text = texts.apply(self.source, edits)
        if not self._is_caught():
            return texts.indented(text, INDENT) + "\n"
        saved = _block(self._saves(), INDENT + "    ")
        return f"{INDENT}try:\n{texts.indented(text, INDENT + '    ')}\n{INDENT}finally:\n{saved}"

    def _is_caught(self) -> bool:
        """Whether names must be saved although the body may fail: what --catch is for."""
        return self.options.catch is not None and bool(self._saves())

    # ---- the end ----

    def tail(self) -> str:
        lines = [] if self._is_caught() else self._saves()
        lines += [f'self.{attribute} = hasattr(self, "{name}")' for attribute, name in self.method.told.items()]
        return _block(lines + self._plan()) + _block([self._next()] if not self.method.is_last else [])

    def _saves(self) -> list[str]:
        cell = self.method.cell
        if cell is None:
            return []
        lines = []
        loaded = {name for name, guarded in self._loads() if not guarded}
        for name in cell.artifacts:
            if name in self.direct or (self._item() and self._item()[0].startswith(f"self.{name} = ")):
                continue
            kept = name in loaded and name not in cell.body.deletes
            sure = kept or (self.options.catch is None and cell.surely_makes(name))
            where = "globals" if name in self.globals else "locals"
            lines += [f"self.{name} = {name}"] if sure else [f'if "{name}" in {where}():', f"    self.{name} = {name}"]
        return lines

    def _plan_bodies(self) -> list[Body]:
        fan, choice = self.method.fan, self.method.choice
        bodies = [fan.foreach] if fan is not None and not self._by_name() else []
        bodies += [self.writer.cells[choice.cell].when] if choice is not None else []
        return [body for body in bodies if body is not None]

    def _plan_cell(self) -> Cell | None:
        choice = self.method.choice
        return self.method.fan if choice is None else self.writer.cells[choice.cell]

    def _by_name(self) -> bool:
        """Whether the items are an artifact or a parameter, which `self.next` takes by its name."""
        fan = self.method.fan
        expr = fan.step.options.foreach.expr if fan is not None and fan.step.options.foreach else ""
        if fan is None or not expr.isidentifier():
            return False
        made = next((given for given in fan.step.plan_inputs if given.name == expr), None)
        return expr in self.writer.parameters or (made is not None and not made.captured and bool(made.makers))

    def _plan_loads(self) -> list[tuple[str, str]]:
        """(name, from where) of what --foreach or --when reads and the method does not have yet."""
        planned = self._plan_cell()
        names = {name for body in self._plan_bodies() for name in (*body.reads, *body.builtin_reads)}
        if planned is None:
            return []
        have = {name for name, _ in self._loads()} | set(self.method.joined)
        cell = self.method.cell
        found = {}
        for given in planned.step.plan_inputs:
            made_here = cell is not None and given.makers[:1] == (cell.name,)
            wanted = given.name in names or given.name in self.writer.shared
            if given.makers and wanted and not made_here and given.name not in have and not self._is_import(given):
                found[given.name] = f"self.{given.name}"
        found |= {name: f"self.{name}" for name in names & self.writer.parameters if name not in have}
        for name in names & set(planned.step.options.join) - have:
            kept = next((m.recalled.get(name, "") for m in self.writer.methods if m.cell is planned), "")
            found[name] = f"self.{kept}" if kept else "self"
        return sorted(found.items())

    def _plan(self) -> list[str]:
        lines: list[str] = []
        choice, planned = self.method.choice, self._plan_cell()
        for name, source in self._plan_loads():
            given = next((g for g in planned.step.plan_inputs if g.name == name), None) if planned is not None else None
            sure = given is None or any(self._surely(maker, name) for maker in given.makers)
            lines += [f"{name} = {source}"] if sure else [f'if hasattr(self, "{name}"):', f"    {name} = {source}"]
        lines += self._plan_imports()
        if choice is not None:
            tests = [f'hasattr(self, "{name}")' for name in choice.lacks]
            ran = " or ".join(self._has_run(name, marker) for name, marker in self.method.markers.items())
            tests += [f"bool({choice.when})"] if choice.when is not None else []
            if ran:
                tests.append(f"({ran})" if tests and " or " in ran else ran)
            lines.append(f"self._runs_{choice.cell} = {' and '.join(tests)}")
        return lines

    def _has_run(self, step: str, marker: str) -> str:
        """Whether a joined step ran: in a fan-out for one item at least, unless there is none."""
        assert self.method.choice is not None
        reader = next(method for method in self.writer.methods if method.name == self.method.choice.cell)
        attribute = reader.recalled.get(step, "")
        tasks = next((method.kept[attribute] for method in self.writer.methods if attribute in method.kept), None)
        if tasks is None:
            return f'hasattr(self, "{marker}")'
        if tasks.leaf is not None:
            return f'hasattr(self.{attribute}, "{marker}")'
        return f'not self.{attribute} or any(hasattr(task, "{marker}") for task in self.{attribute})'

    def _plan_imports(self) -> list[str]:
        planned = self._plan_cell()
        found: dict[str, None] = {}
        for given in planned.step.plan_inputs if planned is not None and self._plan_bodies() else ():
            for maker in given.makers:
                if self._is_import(given) and maker != self.method.name:
                    found.update(dict.fromkeys(imports_of(self.writer.cells[maker], given.name)))
        return list(found)

    def _next(self) -> str:
        method = self.method
        if method.choice is not None:
            cases = f"{{True: self.{method.targets[0]}, False: self.{method.other}}}"
            return call("self.next", [cases, f'condition="_runs_{method.choice.cell}"'], INDENT)
        targets = [f"self.{name}" for name in method.targets]
        if method.fan is not None:
            assert method.fan.step.options.foreach is not None
            expr = method.fan.step.options.foreach.expr
            return call("self.next", [*targets, f"foreach={quoted(expr) if self._by_name() else items(expr)}"], INDENT)
        return call("self.next", targets, INDENT)


def _merge(inputs: str, names: list[str]) -> list[str]:
    line = f"self.merge_artifacts({inputs}, include=[{', '.join(names)}])"
    if len(INDENT) + len(line) <= texts.WIDTH:
        return [line]
    return [
        f"self.merge_artifacts(\n{INDENT}    {inputs},\n{INDENT}    include=[\n"
        + "".join(f"{INDENT}        {n},\n" for n in names)
        + f"{INDENT}    ],\n{INDENT})"
    ]


def _block(lines: Iterable[str], indent: str = INDENT) -> str:
    return "".join(f"{indent}{line}\n" for line in lines)


def items(expr: str) -> str:
    """The items of a fan-out as an expression that is surely no string, which would be taken for the name of an artifact."""
    node = ast.parse(expr, mode="eval").body
    sure = isinstance(node, ast.List | ast.Set | ast.Dict | ast.Tuple | ast.ListComp | ast.SetComp | ast.DictComp)
    made = (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("range", "enumerate", "zip", "sorted", "list")
    )
    return expr if sure or made else f"list({expr.removeprefix('(').removesuffix(')') if isinstance(node, ast.GeneratorExp) else expr})"


def imports_of(cell: Cell, name: str) -> list[str]:
    """The statements by which a body imports a name, each reduced to it."""
    found = []
    for node in texts.at_cell_level(texts.parse(cell.step.source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            aliases = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] == name]
            for alias in aliases:
                single = ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], node.level)
                found.append(ast.unparse(single))
    return found


# ---- options → decorators ----------------------------------------------------------------------------------------------------


def decorators_of(options: Options) -> Iterator[tuple[str, list[str]]]:
    """(name, arguments as text) of the decorators that say what the options of a step cell say."""
    if options.retry != Retry():
        yield "retry", _differing(options.retry, Retry(), {}, always=("times", "minutes_between_retries"))
    if options.timeout_s is not None:
        yield "timeout", _duration(options.timeout_s)
    if options.catch is not None:
        yield "catch", [f"var={quoted(options.catch)}", *([] if options.print_exception else ["print_exception=False"])]
    if options.resources != Resources():
        spelled = {"memory_mb": "memory", "disk_mb": "disk", "shared_memory_mb": "shared_memory"}
        yield "resources", _differing(options.resources, Resources(), spelled)
    if options.env:
        yield "environment", [f"vars={texts.literal(dict(options.env))}"]
    if options.secrets:
        yield "secrets", [f"sources={texts.literal([Secret.from_text(each).written for each in options.secrets])}"]
    for card in options.cards:
        yield "card", _card(card)
    if options.checkpoint is not None:
        yield "checkpoint", _differing(options.checkpoint, Checkpoint(), {})


def _differing(value: object, default: object, spelled: Mapping[str, str], always: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name, given in vars(value).items():
        if given != getattr(default, name) or name in always:
            plain = int(given) if isinstance(given, float) and given.is_integer() else given
            found.append(f"{spelled.get(name, name)}={texts.literal(plain)}")
    return found


def _card(card: Card) -> list[str]:
    found = _differing(card, Card(), {"refresh_interval_s": "refresh_interval", "timeout_s": "timeout"})
    if card.options:
        import json

        found = [each for each in found if not each.startswith("options=")] + [f"options={texts.literal(json.loads(card.options))}"]
    return found


def _duration(seconds: float) -> list[str]:
    if seconds != int(seconds):
        return [f"seconds={seconds!r}"]
    left, found = int(seconds), []
    for unit, size in (("hours", 3600), ("minutes", 60), ("seconds", 1)):
        count, left = divmod(left, size)
        found += [f"{unit}={count}"] if count else []
    return found
