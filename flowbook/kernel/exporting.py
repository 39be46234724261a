"""`%flow export`: what of a kernel goes into the file of a FlowSpec class, and the file itself.

    gather            the flow of a session → spec.export.Notebook: its linked steps, and the plain cells that they capture, as text
    export            gather, write the file, or compare it (`check`)
    export_notebook   the same for a notebook file, whose definition cells run in a process of its own; nothing of the flow runs

Captured functions and classes go by the text of their cells, modules by an import, data as a literal. What cannot be written down
exactly is refused by name: a file that computes something else is worth less than none.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook.errors import ArtifactNotLoaded, DefinitionError, Finding, FlowbookError
from flowbook.kernel.cells import Ran, code_globals, functions_of, notebook_path
from flowbook.kernel.session import FlowDef, Param, Session
from flowbook.spec import export as exports
from flowbook.spec import export_text as texts
from flowbook.spec.body import BUILTINS, Body, read_body
from flowbook.spec.export_nest import Cell
from flowbook.spec.flow import Spec
from flowbook.spec.graph import Linked

SIGN = "exported from the step cells of"  # in the first lines of every file that export writes
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)


@dataclass(frozen=True)
class Block:
    """A text for the top of the file: what it binds, what it needs when it is executed, and when its cell ran."""

    text: str
    place: tuple[int, int]
    binds: frozenset[str]
    needs: frozenset[str]
    uses: frozenset[str]  # globals of the functions in it


@dataclass
class Captured:
    """The plain cells, taken apart."""

    imports: list[str] = field(default_factory=list)
    constants: list[Block] = field(default_factory=list)
    definitions: list[Block] = field(default_factory=list)
    bound: set[str] = field(default_factory=set)
    futures: set[str] = field(default_factory=set)
    seeds: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


# ---- one flow → its text ------------------------------------------------------------------------------------------------------


def export(session: Session, path: str, *, flow: str | None = None, class_name: str | None = None, check: bool = False) -> list[str]:
    """Write the class of a flow, or with `check` compare the file with it. Gives what to tell the user.

    Raises DefinitionError for what a class cannot say, FlowbookError if the file differs, is missing, or was not written by export.
    """
    file = Path(path).expanduser()
    if file.suffix != ".py":
        raise DefinitionError(Finding("%flow export", f"{path!r} does not end in .py", "Write `%flow export FILE.py`."))
    if file.stem in sys.stdlib_module_names:
        raise DefinitionError(Finding("%flow export", f"{file.name} would hide Python's own module {file.stem}", "Use another name."))
    if class_name is not None and not class_name.isidentifier():
        raise DefinitionError(Finding("%flow export", f"{class_name!r} is not a class's name", "Use letters, digits and _."))
    refuse_class(session, flow)
    defined = session.existing(flow)
    notebook, notes = gather(session, defined)
    text = exports.export(notebook, class_name)
    name = class_name or exports.class_of(notebook)
    notes += _notes(notebook, name)
    if check:
        compare(file, text)
        return [f"{path} is what the notebook exports", *notes]
    write(file, text)
    return [f"{path}: class {name}, {len(notebook.cells)} steps. Run it: python {path} run", *notes]


def refuse_class(session: Session, flow: str | None) -> None:
    """Raises DefinitionError if the flow is a class, or a class is all that there is."""
    classes = session.classes()
    name = flow if flow is not None else classes[0] if classes and not session.of_cells().steps else None
    if name in classes and not session.of_cells(name).steps:
        remedy = "Put its cell in a file, with the cells that it uses: `%%writefile FILE.py` writes a cell there."
        cls = session.flow_class(name)
        if cls is not None and cls.__module__ != "__main__":
            remedy = f"It stands in the module {cls.__module__}."
        raise DefinitionError(Finding("%flow export", f"{name} is already a class", remedy))


def compare(file: Path, text: str) -> None:
    """Raises FlowbookError, with the difference, unless the file holds the text."""
    try:
        there = file.read_text("utf-8")
    except FileNotFoundError:
        raise FlowbookError(f"{file} does not exist; `%flow export {file}` writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FlowbookError(f"{file} cannot be read: {error}") from None
    if there != text:
        lines = difflib.unified_diff(there.splitlines(), text.splitlines(), str(file), "the notebook", lineterm="")
        raise FlowbookError(f"{file} is no longer what the notebook exports; `%flow export {file}` writes it anew\n" + "\n".join(lines))


def write(file: Path, text: str) -> None:
    """Raises FlowbookError for a file that somebody else wrote."""
    try:
        if file.exists() and SIGN not in file.read_text("utf-8", "replace")[:400]:
            raise FlowbookError(f"{file} was not written by `%flow export`; remove it, or export to another file")
        file.write_text(text, "utf-8")
    except OSError as error:
        raise FlowbookError(f"{file} cannot be written: {error.strerror or error}") from None


def _notes(notebook: exports.Notebook, class_name: str) -> list[str]:
    notes = []
    watched = [cell.name for cell in notebook.cells if cell.step.options.files]
    if watched:
        notes.append(f"--files of {', '.join(watched)}: a class reads files as they are when the step runs; keep them beside the file")
    drawing = [cell.name for cell in notebook.cells if cell.body.calls_random]
    if class_name != notebook.flow and drawing:
        notes.append(
            f"{', '.join(drawing)} draws random numbers, and what is drawn depends on the flow's name: {class_name} is not {notebook.flow}"
        )
    return notes


def gather(session: Session, flow: FlowDef) -> tuple[exports.Notebook, list[str]]:
    """All that the text of a flow is made of, and what `%flow check` would warn of. Raises DefinitionError with all findings."""
    linked = session.checked(flow)
    spec, _, notes = session.spec_of(flow, linked=linked)
    captured = _Plain(session, spec, flow).take()
    parameters = [_parameter(param, captured.findings) for param in flow.params.values()]
    path = notebook_path(session.shell)
    notebook = exports.Notebook(
        flow=flow.name,
        cells=_cells(session, flow, linked),
        parameters=tuple(parameter for parameter in parameters if parameter is not None),
        imports=_imports(captured.imports),
        blocks=_blocks(captured),
        bound=frozenset(captured.bound),
        shared=frozenset(name for block in captured.definitions for name in block.uses),
        futures=frozenset(captured.futures),
        seeds=tuple(captured.seeds),
        origin=path.name if path is not None else "",
    )
    findings = [*captured.findings, *exports.refusals(notebook)]
    if findings:
        raise DefinitionError(*findings)
    return notebook, notes


def _imports(lines: Iterable[str]) -> tuple[str, ...]:
    """One line for each module, and no ``import xml`` where ``import xml.dom`` stands."""
    every, names = set(lines), dict[str, set[str]]()
    for line in every:
        if line.startswith("from "):
            module, _, name = line.partition(" import ")
            names.setdefault(module, set()).add(name)
    plain = (line for line in every if line.startswith("import ") and not any(other.startswith(f"{line}.") for other in every))
    return (*sorted(plain), *(f"{module} import {', '.join(sorted(found))}" for module, found in sorted(names.items())))


def _cells(session: Session, flow: FlowDef, linked: Linked) -> tuple[Cell, ...]:
    found = []
    for step in linked.steps:
        defined = flow.steps[step.name]
        foreach = read_body(step.options.foreach.expr, expression=True) if step.options.foreach else None
        when = read_body(step.options.when, expression=True) if step.options.when is not None else None
        found.append(Cell(dataclasses.replace(step, label=""), defined.body, foreach, when))
    return tuple(found)


def _parameter(param: Param, findings: list[Finding]) -> exports.ParameterText | None:
    kinds = {int: "int", float: "float", str: "str", bool: "bool", list: "JSONType", dict: "JSONType", None: "JSONType"}
    try:
        if param.kind not in kinds:
            raise texts.NoLiteral(f"it is a {param.kind.__name__}" if param.kind else "it is of no known type")
        return exports.ParameterText(param.name, texts.literal(param.default), kinds[param.kind], param.help)
    except texts.NoLiteral as error:
        findings.append(
            Finding(
                f"parameter {param.name}", f"its default cannot be written as a literal: {error}", "Use numbers, text, lists and dicts."
            )
        )
        return None


# ---- plain cells ----------------------------------------------------------------------------------------------------------------


class _Plain:
    """The captured names of a flow as text."""

    def __init__(self, session: Session, spec: Spec, flow: FlowDef) -> None:
        self.session, self.spec, self.flow = session, spec, flow
        self.space: dict[str, Any] = session.shell.user_ns
        self.mine: Mapping[str, Any] = session.names.mine
        self.found = Captured()
        self.owners: dict[int, str] = {}

    def take(self) -> Captured:
        for name, info in self.spec.captures.items():
            self._take(name, info["kind"], info["entry"].get("submodules", ()))
        for setup in self.flow.setups:
            self._setup(setup.source, setup.body, setup.ran)
        self._take_needs()
        return self.found

    def _take(self, name: str, kind: str, submodules: Iterable[str] = ()) -> None:
        value = self.mine[name] if name in self.mine else self.space[name]
        self.found.bound.add(name)
        try:
            self._name(name, kind, value, submodules)
        except texts.NoLiteral as error:
            self._refuse(name, error)

    def _take_needs(self) -> None:
        """What definitions need while they are executed, and no longer when they are called: decorators, defaults, base classes."""
        plain, seen = self.session.plain(), 0
        while seen < len(self.found.definitions):
            block = self.found.definitions[seen]
            seen += 1
            for name in sorted(block.needs - self.found.bound):
                if name in plain:
                    value = self.mine[name] if name in self.mine else self.space[name]
                    self._take(name, "class" if isinstance(value, type) else "function" if isinstance(value, _FUNCTIONS) else "data")
                elif name not in BUILTINS:
                    self._lost(name, block)

    def _lost(self, name: str, block: Block) -> None:
        first = block.text.split("\n")[0]
        self.found.findings.append(
            Finding(f"`{first}`", f"it needs `{name}`, which is no plain name of this kernel now", "Define it again.")
        )

    def _refuse(self, name: str, error: texts.NoLiteral) -> None:
        captured = name in self.spec.captures
        readers = self.session._readers(self.spec.steps, name) if captured else "a definition that a step uses"
        self.found.findings.append(
            Finding(
                self.session.cells.origin(name),
                f"`{name}`, read by {readers}, cannot be written down exactly: {error}",
                f"Make `{name}` in a step or in a %%flowsetup cell; the file then makes it, too.",
            )
        )

    def _name(self, name: str, kind: str, value: Any, submodules: Iterable[str]) -> None:
        if isinstance(value, types.ModuleType):
            self._module(name, value, submodules)
            return
        binder = self.session.cells.last_binder(name)
        if binder is not None and name not in self.mine and self._imported(name, value, binder):
            return
        if isinstance(value, _FUNCTIONS) and getattr(value, "__module__", None) not in (None, "__main__"):
            self._from_module(name, value)
        elif kind in ("function", "class"):
            self._definition(name, value, binder)
        else:
            self._constant(name, value, binder)

    def _module(self, name: str, value: types.ModuleType, submodules: Iterable[str]) -> None:
        module = value.__name__
        self.found.imports.append(f"import {module}" if module == name else f"import {module} as {name}")
        self.found.imports += [f"import {submodule}" for submodule in submodules if submodule.partition(".")[0] == name]

    def _imported(self, name: str, value: Any, binder: Ran) -> bool:
        """Whether the cell that binds the name imports it: then the file does the same."""
        tree = _parsed(binder)
        for node in texts.at_cell_level(tree) if tree is not None else ():
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            for alias in node.names:
                if (alias.asname or alias.name) == name and _attribute(node.module, alias.name) is value:
                    self.found.imports.append(ast.unparse(ast.ImportFrom(node.module, [alias], 0)))
                    return True
        return False

    def _from_module(self, name: str, value: Any) -> None:
        module, there = str(value.__module__), str(getattr(value, "__qualname__", ""))
        if _attribute(module, there) is not value:
            raise texts.NoLiteral(f"it is {there or name} of {module}, which does not have it by that name")
        self.found.imports.append(f"from {module} import {there}" + (f" as {name}" if there != name else ""))

    def _definition(self, name: str, value: Any, binder: Ran | None) -> None:
        ran = self._cell_of(value) or binder
        tree = _parsed(ran) if ran is not None else None
        node = _last_statement(tree, name) if tree is not None else None
        if ran is None or node is None:
            raise texts.NoLiteral("no cell defines it at its top level")
        is_lambda = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not is_lambda:
            raise texts.NoLiteral("it is not defined by def, class or lambda, but computed")
        assert tree is not None
        self.found.futures |= texts.futures(tree)
        uses = {used for function in functions_of(value, self.space) for used in code_globals(function.__code__)}
        self.found.definitions.append(_block(_statement_text(ran.transformed, node), (ran.number, node.lineno), {name}, uses))

    def _cell_of(self, value: Any) -> Ran | None:
        """The execution that defined a function: its code knows the cell's file name."""
        functions = functions_of(value, self.space)
        filename = functions[0].__code__.co_filename if functions and not isinstance(value, type) else ""
        count = getattr(self.session.shell.compile, "_filename_map", {}).get(filename)
        return next((ran for ran in reversed(self.session.cells.ran) if ran.count == count), None)

    def _constant(self, name: str, value: Any, binder: Ran | None) -> None:
        text = texts.literal(value)
        for part in set(texts.mutable_parts(value)):
            if (other := self.owners.setdefault(part, name)) != name:
                raise texts.NoLiteral(f"it shares a part with `{other}`, and two literals would not")
        if re.search(r"\bPath\(", text):
            self.found.imports.append("from pathlib import Path")
        place = (binder.number if binder else 0, 0)
        line = (binder and _written(binder, name, text)) or f"{name} = {text}"
        self.found.constants.append(Block(line, place, frozenset({name}), frozenset(), frozenset()))

    def _setup(self, source: str, body: Body, ran: Ran) -> None:
        text = texts.trimmed(source)
        if not text:
            return
        read = sorted(set(body.reads) & set(self.flow.params))
        if read:
            what = f"%%flowsetup reads the parameter `{read[0]}`, and a file is executed before its parameters are known"
            self.found.findings.append(Finding(ran.label, what, "Do that in a step."))
        tree = texts.parse(text)
        if any(isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for node in texts.at_cell_level(tree)):
            self.found.findings.append(Finding(ran.label, "`await` in a %%flowsetup cell has no equal in a file", "Write asyncio.run(…)."))
        self._seeds(text, tree, body, ran)
        self.found.futures |= texts.futures(tree)
        binds = {*body.makes, *body.others}
        self.found.bound |= binds
        uses = {name for free in body.deferred.values() for name in free}
        text = texts.trimmed(texts.apply(text, texts.future_edits(tree)))
        self.found.definitions.append(_block(text, (ran.number, 0), binds, uses))

    def _seeds(self, text: str, tree: ast.Module, body: Body, ran: Ran) -> None:
        """The statements that seed a generator. What comes after them in the cell must not draw: each task begins with them alone."""
        found = [node for node in tree.body if isinstance(node, ast.Expr) and "seed" in _callee(node.value)]
        self.found.seeds += [ast.get_source_segment(text, node) or ast.unparse(node) for node in found]
        if body.calls_random or (body.seeds_random and not found):
            what = "draws random numbers" if body.calls_random else "seeds a generator inside another statement"
            self.found.findings.append(
                Finding(
                    ran.label, f"%%flowsetup {what}, which a file does not do for each task", "Seed in a line of its own; draw in a step."
                )
            )


def _callee(node: ast.expr) -> str:
    """``np.random.seed(0)`` → ``seed``; "" for what is no call."""
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _block(text: str, place: tuple[int, int], binds: Iterable[str], uses: Iterable[str]) -> Block:
    return Block(text, place, frozenset(binds), read_body(text).immediate, frozenset(uses))


def _blocks(captured: Captured) -> tuple[str, ...]:
    """Constants in one block, then the rest as it ran, but each behind what it needs."""
    constants = [block.text for block in sorted(captured.constants, key=lambda block: (block.place, sorted(block.binds)))]
    left = sorted(captured.definitions, key=lambda block: block.place)
    ordered: list[str] = []
    while left:
        missing = [{name for other in left if other is not block for name in other.binds} & block.needs for block in left]
        ready = next((block for block, needs in zip(left, missing, strict=True) if not needs), left[0])
        left.remove(ready)
        ordered.append(ready.text)
    return (*(["\n".join(constants)] if constants else []), *ordered)


def _attribute(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except Exception:  # whatever a module of the user raises on import
        return None


def _parsed(ran: Ran) -> ast.Module | None:
    try:
        return texts.parse(ran.transformed)
    except (SyntaxError, ValueError):
        return None


def _last_statement(tree: ast.Module, name: str) -> ast.stmt | None:
    """The last statement at the top level of a cell that binds the name."""
    found: ast.stmt | None = None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            found = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                found = node
    return found


def _statement_text(source: str, node: ast.stmt) -> str:
    """A statement with its decorators and the comment that stands right above it."""
    lines = source.split("\n")
    first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]) - 1
    while first > 0 and lines[first - 1].startswith("#") and not lines[first - 1].startswith("#|"):
        first -= 1
    return "\n".join(lines[first : node.end_lineno]).rstrip()


def _written(ran: Ran, name: str, text: str) -> str | None:
    """The line of the cell itself, if it alone gives the value: ``LIMIT = 10 * 1024  # bytes`` says more than 10240."""
    tree = _parsed(ran)
    node = _last_statement(tree, name) if tree is not None else None
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or node.lineno != node.end_lineno or node.col_offset:
        return None
    if any(isinstance(part, ast.Name | ast.Call | ast.Attribute) for part in ast.walk(node.value)):
        return None
    try:
        same = texts.literal(eval(compile(ast.Expression(node.value), "<cell>", "eval"), {})) == text
    except Exception:
        return None
    line = ran.transformed.split("\n")[node.lineno - 1].rstrip()
    return line if same and ";" not in line else None


# ---- a notebook file --------------------------------------------------------------------------------------------------------------


def export_notebook(
    path: str | Path, out: str | Path, check: bool = False, *, flow: str | None = None, class_name: str | None = None
) -> list[str]:
    """Export the flow of a notebook file. Its cells run in a process of its own, but for those that run the flow or use its results.

    Gives what to tell the user. Raises FlowbookError.
    """
    notebook, file = Path(path).expanduser().resolve(), Path(out).expanduser().resolve()
    _read_notebook(notebook)
    order = {"notebook": str(notebook), "out": str(file), "check": check, "flow": flow, "class_name": class_name}
    with tempfile.TemporaryDirectory(prefix="flowbook-export-") as folder:
        environ = {**os.environ, "FLOWBOOK_NOTEBOOK": str(notebook), "FLOWBOOK_STORE": folder, "FLOWBOOK_AUTORUN": "false"}
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            cwd=notebook.parent,
            env=environ,
            check=False,
        )
    try:
        report = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        tail = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise FlowbookError(f"{path} could not be exported: its kernel ended\n{tail}") from None
    if report.get("error"):
        raise FlowbookError(report["error"])
    told: list[str] = report["told"]
    return told


def _read_notebook(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook file. Raises FlowbookError."""
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        return [{"id": cell.get("id"), "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]
    except FileNotFoundError:
        raise FlowbookError(f"there is no notebook {path}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FlowbookError(f"{path} cannot be read as a notebook: {error}") from None


_COMMAND = re.compile(r"^([ \t]*)(?:\w+\s*=\s*)?%flow\b\s*(\w*).*$", re.MULTILINE)
_RUNS = ("run", "resume", "attach", "wait", "at", "debug")
_RUN_OPTION = re.compile(r"^((?:%%flowstep|#\|).*?)\s--run(?=\s|$)", re.MULTILINE)
_AUTORUN = re.compile(r"^%config\s+FlowMagics\.autorun\b.*$", re.MULTILINE)
_CALL = re.compile(r"\bflow\s*\.\s*(?:run|resume|attach|wait|at|debug|stop|status|logs|load)\s*\(|\bflow\s*\[")
_RUN_INSIDE = re.compile(rf"(?:^[ \t]+.*|\S.*)%flow\s+(?:{'|'.join(_RUNS)})\b|run_line_magic\(\s*['\"]flow['\"]", re.MULTILINE)
_DEFINES = re.compile(r"\s*(?:%%flow(?:step|params|setup)\b|#\|\s*flow(?:step|params|setup)\b)")


def definition(source: str) -> str | None:
    """What of a cell defines something: without lines that show the flow, and only what stands above the line that runs it.

    None if the cell is all about running the flow, or runs it inside a statement: what stands below reads results.
    """
    if _DEFINES.match(source):
        return _RUN_OPTION.sub(lambda found: found[1], source)
    runs = next((found for found in _COMMAND.finditer(source) if found[2] in _RUNS), None)
    kept = source if runs is None or runs[1] else source[: runs.start()]
    if _CALL.search(source) or _RUN_INSIDE.search(re.sub(r"^\w+\s*=\s*%", "%", kept, flags=re.MULTILINE)):
        return None
    kept = _COMMAND.sub(lambda found: found[0] if found[2] in ("defaults", "drop") else found[1] and f"{found[1]}pass", kept)
    kept = _AUTORUN.sub("", kept)
    return kept if kept.strip() else None


def _in_shell(order: Mapping[str, Any]) -> list[str]:
    """Run the definition cells in a shell of this process, then export."""
    from IPython.core.interactiveshell import InteractiveShell

    from flowbook import kernel
    from flowbook.kernel.session import current_session

    shell = InteractiveShell.instance()
    kernel.load(shell)
    session = current_session()
    try:
        notes = _run_cells(shell, _read_notebook(Path(order["notebook"])))
        try:
            told = export(session, order["out"], flow=order["flow"], class_name=order["class_name"], check=order["check"])
        except DefinitionError as error:
            raise FlowbookError("\n".join([str(error), *notes])) from None
        return [*told, *notes]
    finally:
        session.close()


def _run_cells(shell: Any, cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Run what defines something; gives which cells were left out, and why."""
    running, notes = [], []
    for number, cell in enumerate(cells, 1):
        source = definition(cell["source"])
        if source is None or source.strip() != cell["source"].strip():
            runs = any(found[2] in _RUNS for found in _COMMAND.finditer(cell["source"])) or _CALL.search(cell["source"])
            running += [str(number)] * bool(runs and not _DEFINES.match(cell["source"]))
        if source is not None and (note := _run_cell(shell, number, source, cell["id"])):
            notes.append(note)
    if running:
        many = len(running) > 1
        what = f"code cell{'s' * many} {', '.join(running)} {'run' if many else 'runs'} the flow: left out from there on"
        notes.insert(0, what)
    return notes


def _run_cell(shell: Any, number: int, source: str, cell_id: str | None) -> str:
    """Run a cell. Gives a note if it was left out, because it uses results; raises FlowbookError if it fails.

    A plain cell that reads a name which is not there uses a result, or what a cell made that was left out: no step can need what it
    makes, or the export says that this is missing.
    """
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        ran = shell.run_cell(source, store_history=True, cell_id=cell_id)
    error = ran.error_before_exec or ran.error_in_exec
    if error is None:
        return ""
    if isinstance(error, ArtifactNotLoaded):
        return f"code cell {number} was left out: it uses results of the flow"
    if isinstance(error, NameError) and not _DEFINES.match(source):
        return f"code cell {number} was left out: {error}"
    raise FlowbookError(f"code cell {number} of the notebook failed: {type(error).__name__}: {error}")


def main() -> None:
    """Order as JSON on stdin, what came of it as the last line of stdout."""
    order = json.loads(sys.stdin.read())
    out = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            report: dict[str, Any] = {"told": _in_shell(order)}
    except FlowbookError as error:
        report = {"error": str(error)}
    out.write("\n" + json.dumps(report) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
