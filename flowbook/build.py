"""From a FlowSpec class to the spec of a run: check it, find its code, write `run.json`.

A door, used by the command line, the kernel and tests alike. `program_of` reads a class and says all that is wrong with it, without
a store; `spec_of` writes what a run needs into the store and takes the run's number.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import getpass
import json
import linecache
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook._version import __version__
from flowbook.errors import DefinitionError, Finding, NotPicklable
from flowbook.spec import classgraph, decorators, parameters
from flowbook.spec.classgraph import Graph, Node
from flowbook.spec.flow import Options, Spec, Step
from flowbook.spec.flowspec import FlowSpec
from flowbook.spec.marks import Mark
from flowbook.store import canon, codec, package, preview
from flowbook.store.base import Store
from flowbook.store.numbers import take_number

Parts = dict[str, str]
ASKED = "asked for"  # a part of the key of a step that `resume STEP` names


@dataclass(frozen=True)
class Program:
    """A FlowSpec class, read. `file` is the one that Python runs as `__main__`, None for a class of a notebook cell."""

    cls: type
    graph: Graph
    options: Mapping[str, Options]
    parameters: Mapping[str, Any]  # attribute → Parameter
    constants: Mapping[str, Any]  # public attributes of the class that are plain values
    findings: tuple[Finding, ...]
    file: str | None
    notes: tuple[str, ...] = ()  # what is no mistake and yet hardly meant

    @property
    def name(self) -> str:
        return self.cls.__name__

    def steps(self) -> tuple[Step, ...]:
        """The steps as a spec would have them, without keys: for looking at."""
        return classgraph.link(self.graph, self.options, method=self.name)

    def check(self) -> None:
        """Raises DefinitionError with all findings."""
        if self.findings:
            raise DefinitionError(*self.findings)


# ---- reading a class ------------------------------------------------------------------------------------------------------


def program_of(
    cls: type,
    *,
    with_marks: Sequence[Mark] = (),
    label: Callable[[str], str] | None = None,
    file: str | None = None,
) -> Program:
    """Read a class. `with_marks` are those of `--with`; `label(filename)` how people call a file or a cell."""
    given = parameters.parameters_of(cls)
    constants = constants_of(cls, given)
    graph = classgraph.read(cls, label, [*given])
    findings = [*graph.findings, *parameters.check_parameters(cls)]
    options: dict[str, Options] = {}
    for node in graph.nodes:
        try:
            options[node.name] = decorators.options_of(node.function, node.where, with_marks, cls)
        except DefinitionError as error:
            findings += error.findings
            options[node.name] = Options()
    findings += [finding for node in graph.nodes for finding in _decorated(node, options[node.name])]
    findings += _names(cls, graph, given)
    required = [attribute for attribute, parameter in given.items() if parameter.required]
    findings += decorators.class_findings(cls, required, [*given])
    notes = tuple(note for node in graph.nodes for note in _missed(node, options[node.name]))
    return Program(cls, graph, options, given, constants, tuple(sorted(dict.fromkeys(findings), key=_line)), file, notes)


def _line(finding: Finding) -> int:
    """What is of the flow as a whole comes first, then the findings in the order of the text."""
    found = re.search(r"line (\d+)", finding.where)
    return int(found[1]) if found else 0


def constants_of(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the class itself that are values: artifacts of every task, which no task sets."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base not in (object, FlowSpec):
            found.update(vars(base))
    plain = (str, bytes, int, float, complex, bool, type(None), list, tuple, dict, set, frozenset)
    return {name: value for name, value in found.items() if not name.startswith("_") and name not in given and isinstance(value, plain)}


def _decorated(node: Node, options: Options) -> Iterable[Finding]:
    if options.catch is not None and node.next is not None and node.next.kind in ("foreach", "switch"):
        why = "fans out" if node.next.kind == "foreach" else "chooses its way"
        yield Finding(
            node.where, f"@catch on a step that {why}: if it fails nobody knows how", "Do that in a step of its own, without @catch."
        )
    if options.catch and options.catch in node.use.sets:
        yield Finding(node.where, f"@catch(var={options.catch!r}) is named like an artifact that the step sets", "Give it another name.")


def _missed(node: Node, options: Options) -> Iterable[str]:
    """What a step uses that does nothing without its decorator."""
    used = {name for function in node.use.functions for name in _doors(function)}
    if "checkpoint" in used and options.checkpoint is None:
        yield f"step {node.name} uses checkpoint, but has no @checkpoint: nothing is saved. Add @checkpoint above it."
    if "card" in used and not options.cards:
        yield f"step {node.name} uses card, but has no @card: nothing is shown. Add @card above it."


@functools.lru_cache(maxsize=512)
def _doors(function: classgraph.Function) -> frozenset[str]:
    """Of "card" and "checkpoint", those whose attributes the body of a function asks for."""
    tree = classgraph.definition(function)
    space, own = function.__globals__, function.__code__.co_varnames
    found: set[str] = set()
    for part in (part for statement in (tree.body if tree is not None else ()) for part in ast.walk(statement)):
        if isinstance(part, ast.Name) and part.id in ("save_checkpoint", "load_checkpoint") and part.id not in own:
            given = space.get(part.id)  # a user may have functions of that name
            if given is None or str(getattr(given, "__module__", "")).startswith("flowbook."):
                found.add("checkpoint")
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id not in own:
            if part.value.id == "current" and part.attr in ("card", "checkpoint"):
                found.add(part.attr)
            elif any(space.get(part.value.id) is door for door in (decorators.card, decorators.checkpoint)):
                found.add(space[part.value.id].__name__)
    return frozenset(found)


def _names(cls: type, graph: Graph, given: Mapping[str, Any]) -> Iterable[Finding]:
    for node in graph.nodes:
        for name in sorted((node.use.sets - node.use.tried) & given.keys()):
            yield Finding(
                node.where, f"it sets self.{name}, which is a parameter", "Parameters are read-only; give the artifact another name."
            )
        if node.name in given:
            yield Finding(node.where, "a parameter has the same name", "Rename one of them.")


# ---- the spec -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """What a class needs to run in a worker, beside its own text: filled by the command line from files, by the kernel from its cells."""

    captures: Mapping[str, Any] = field(default_factory=dict)
    step_captures: tuple[str, ...] = ()
    sources: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    parts: Callable[[Node], Parts] = lambda node: {}
    program: str | None = None
    method: str = ""  # the class's name in the worker's main
    setup: tuple[str, ...] = ()  # as in Spec
    setup_captures: tuple[str, ...] = ()


def spec_of(
    program: Program,
    store: Store,
    *,
    params: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    origin: Spec | None = None,
    again: Iterable[str] = (),
    fresh: bool = True,
    max_parallel: int | None = None,
    code: Code | None = None,
    notebook: str | None = None,
    user: str | None = None,
    life: str = "",
    branch: str | None = None,
    production: bool = False,
    finish: Callable[[Spec], Spec] = lambda spec: spec,
) -> Spec:
    """Write the spec of a run and take its number. `params` are values by attribute (parameters.resolve); what is left out is the default.

    `origin`: the run that this one resumes, whose results are taken as far as nothing that they depend on has changed; the steps in
    `again` run in any case, and what comes after them if it depends on them. `finish` has the last word before the spec is written; one
    with a number is that of a run which is there already, and is not written.
    Raises DefinitionError.
    """
    program.check()
    code = code or code_of_file(program, store)
    values = params if params is not None else parameters.resolve(program.cls, {})
    entries = {name: _entry(store, name, value) for name, value in values.items()}
    constants = {name: entry for name, value in program.constants.items() if (entry := _constant(store, name, value)) is not None}
    steps = _steps(program, code, entries, constants, frozenset(again), origin)
    spec = Spec(
        flow=program.name,
        run="",
        steps=steps,
        params=entries,
        captures=dict(code.captures),
        sources=dict(code.sources),
        modules=dict(code.modules),
        setup=code.setup,
        setup_captures=code.setup_captures,
        imports=code.imports,
        tags=tuple(dict.fromkeys(tags)),
        max_parallel=max_parallel,
        origin=origin.run if origin is not None else None,
        fresh=fresh,
        life=life or (origin.life if origin is not None else "") or secrets.token_hex(8),
        notebook=notebook,
        user=user or user_name(),
        started_at=time.time(),
        python=sys.version.split()[0],
        flowbook=__version__,
        previews=preview.mode(),
        program=code.program,
        constants=constants,
        compat=_resolves_metaflow(),
        project=_project(program.cls, user or user_name(), branch, production),
    )
    finished = finish(spec)
    return finished if finished.run else take_number(finished, store)


def _project(cls: type, user: str | None, branch: str | None, production: bool) -> dict[str, Any]:
    """What `current` tells of @project: nothing without one. `branch` and `production` are those of the command line. Raises DefinitionError."""
    found = decorators.project_of(cls)
    if found is None:
        if branch is not None or production:
            what = "--branch and --production are of @project, which the flow has not"
            raise DefinitionError(Finding(f"flow {cls.__name__}", what, "Leave them out, or put @project(name=…) above the class."))
        return {}
    found = dataclasses.replace(found, branch=found.branch if branch is None else branch, production=found.production or production)
    return dict(found.current(cls.__name__, user or "nobody"))


def _resolves_metaflow() -> bool:
    """Whether `import metaflow` means flowbook here, and so in the tasks, too."""
    compat = sys.modules.get("flowbook.compat")
    return compat is not None and bool(compat.installed())


def user_name() -> str | None:
    """Who starts a run; None where the system knows no name."""
    if _resolves_metaflow() and (name := os.environ.get("METAFLOW_USER")):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _entry(store: Store, name: str, value: Any) -> Any:
    try:
        return codec.entry(store, name, value, main=vars(sys.modules["__main__"]))
    except NotPicklable as error:
        raise DefinitionError(Finding(f"parameter {name}", str(error), "Give a value that can be stored.")) from None


def _constant(store: Store, name: str, value: Any) -> Any:
    try:
        return codec.entry(store, name, value)
    except NotPicklable:
        return None  # it is in the class, for those who run it


def _steps(
    program: Program,
    code: Code,
    params: Mapping[str, Any],
    constants: Mapping[str, Any],
    again: frozenset[str],
    origin: Spec | None,
) -> tuple[Step, ...]:
    read = {node.name: frozenset(_mentioned(node) & params.keys()) for node in program.graph.nodes}
    steps = classgraph.link(program.graph, program.options, method=code.method, params=read)
    asked = {step.name: step.parts for step in (origin.steps if origin is not None else ()) if ASKED in step.parts}
    keyed = []
    for step, node in zip(steps, program.graph.nodes, strict=True):
        parts = {"code": canon.short_hash(classgraph.code_of(node.use.functions)), **code.parts(node)}
        parts |= {f"parameter {name}": canon.entry_key(params[name]) for name in sorted(read[node.name])}
        parts |= {f"`{name}`": canon.entry_key(constants[name]) for name in sorted(_mentioned(node) & constants.keys())}
        if _sees_its_place(node):
            parts["current"] = canon.short_hash("its place")
        parts["joins"] = canon.short_hash(json.dumps(step.options.join))
        parts["options"] = canon.short_hash(
            json.dumps([step.options.catch, sorted(step.options.env, key=str), _lasting(step.options.extra)])
        )
        parts["Python"] = canon.short_hash(f"{sys.version_info.major}.{sys.version_info.minor}")
        if step.name in again:
            parts[ASKED] = secrets.token_hex(8)
        elif (earlier := asked.get(step.name)) is not None and {n: v for n, v in earlier.items() if n != ASKED} == parts:
            parts = dict(earlier)  # it ran because it was asked for; nothing has changed since
        key = canon.short_hash(json.dumps([step.name, sorted(parts.items())]))
        plan_key = canon.short_hash(f"the items of {step.name}") if step.options.foreach is not None else ""
        captures = code.step_captures
        keyed.append(dataclasses.replace(step, key=key, plan_key=plan_key, parts=parts, captures=captures))
    return tuple(keyed)


def same_work(spec: Spec, other: Spec) -> bool:
    """Whether both runs would do the same, in the same surroundings: the code and what it reads, and the options of each step."""
    return [_work(step) for step in spec.steps] == [_work(step) for step in other.steps]


def _work(step: Step) -> tuple[Any, ...]:
    parts = {name: value for name, value in step.parts.items() if name not in (ASKED, "options")}  # the options themselves say more
    return step.name, parts, step.options


def _lasting(extra: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """What of the decorators for other places a result depends on: where a step ran is nothing, which image it ran in is."""
    found = []
    for name, text in extra:
        image = json.loads(text).get("image") if name == "kubernetes" else None
        found += [(name, str(image))] if image else [] if name == "kubernetes" else [(name, text)]
    return found


def _mentioned(node: Node) -> frozenset[str]:
    """Attributes that a step may read, of self, or, in a join, of its inputs."""
    if node.use.leaves:
        return _Everything()
    return node.use.reads | _words(node.use.functions)


class _Everything(frozenset[str]):
    """Contains whatever one asks for."""

    def __and__(self, other: Any) -> frozenset[str]:
        return frozenset(other)


@functools.lru_cache(maxsize=512)
def _words(functions: tuple[classgraph.Function, ...]) -> frozenset[str]:
    """Attributes and strings in the text: `self.alpha`, `foreach="alpha"`, `getattr(self, "alpha")`."""
    trees = [tree for function in functions if (tree := classgraph.definition(function)) is not None]
    parts = [part for tree in trees for part in ast.walk(tree)]
    strings = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return frozenset(part.attr for part in parts if isinstance(part, ast.Attribute)) | strings


def _sees_its_place(node: Node) -> bool:
    """Whether the method may know its index, the number of items, or its run."""
    names = classgraph.names_of(node.use.functions)
    return node.use.leaves or bool(_words(node.use.functions) & {"index", "foreach_stack"}) or "current" in names


# ---- the code of a file ---------------------------------------------------------------------------------------------------


def code_of_file(program: Program, store: Store) -> Code:
    """The file that Python runs as `__main__`, and the local modules that it imports."""
    main = sys.modules["__main__"]
    file = program.file or getattr(main, "__file__", None)
    if file is None:
        raise DefinitionError(
            Finding(f"flow {program.name}", "it stands in no file", "Save it in a file, or run it in a notebook with %flow run.")
        )
    path = Path(file).resolve()
    source = "".join(linecache.getlines(file)) or path.read_text("utf-8")
    named = [name for name, value in vars(main).items() if value is program.cls] if program.file is None else [program.name]
    if not named:
        raise DefinitionError(
            Finding(f"flow {program.name}", f"{path.name} does not import it by name", f"Write `from … import {program.name}` in it.")
        )
    modules = package.program_modules(path, store, ("metaflow",) if _resolves_metaflow() else ())
    labels = {
        filename: Path(filename).name
        for filename in {f.__code__.co_filename for node in program.graph.nodes for f in classgraph.wrapped(node.function)}
    }
    sources = {name: {"label": label, "source": "".join(linecache.getlines(name))} for name, label in labels.items()}
    sources[file] = {"label": path.name, "source": source}
    return Code(
        sources=sources,
        modules=modules,
        imports=_imports(source, modules),
        parts=_file_parts(program, file, source, modules),
        program=file,
        method=program.name if program.name in named else named[0],
    )


def _imports(source: str, modules: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules that one process may import for all tasks: what the file imports first, and what every method needs.

    None where the file touches the environment: libraries read it when they are imported. No local ones: they go by content.
    """
    ours = ("flowbook.spec.decorators", "flowbook.spec.parameters", "flowbook.worker.method")
    if re.search(r"environ|putenv", source):
        return ours
    local = {name.partition(".")[0] for name in modules}
    found = {n for n in package.imported_first(source) if n.partition(".")[0] not in local and package.module_spec(n)}
    return (*ours, *sorted(found))


def _file_parts(program: Program, file: str, source: str, modules: Mapping[str, Any]) -> Callable[[Node], Parts]:
    """What the text around the steps contributes to each: the whole file without the bodies of steps, and all local modules.

    A function, a constant or a decorator may reach a step on ways that no reading of the text finds. So an edit of a step runs that
    step again, and any other edit runs all: what then gives the same result goes no further.
    """
    own = [node for node in program.graph.nodes if node.function.__code__.co_filename == file]
    parts = {"the file around its steps": canon.short_hash(classgraph.common_text(source, own, program.name))}
    if modules:
        parts["local modules"] = canon.short_hash("\n".join(package.contents(modules)))
    return lambda node: parts
