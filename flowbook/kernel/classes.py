"""FlowSpec classes of the notebook: found by name, checked, run and resumed. They bind no names; a run is read through its handle.

The class goes along with a run as a capture does, by value, with what its methods use in turn; see capture.py. It is imported for the
first class: `%load_ext` need not wait for what it imports.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook import build
from flowbook.errors import DefinitionError, Finding
from flowbook.kernel import capture, keys
from flowbook.kernel.cells import notebook_path
from flowbook.kernel.engine import environment
from flowbook.kernel.runs import Run
from flowbook.spec import classgraph, parameters
from flowbook.spec.classgraph import Node
from flowbook.spec.flowspec import FlowSpec
from flowbook.store import canon, codec

if TYPE_CHECKING:
    from flowbook.kernel.session import Session
    from flowbook.spec.flow import Spec


def program_of(session: Session, cls: type[FlowSpec]) -> build.Program:
    """The class, read. Raises DefinitionError with all that is wrong."""
    program = build.program_of(cls, label=lambda filename: session.code_label(filename) or Path(filename).name)
    program.check()
    return program


def run(
    session: Session,
    cls: type[FlowSpec],
    *,
    params: Mapping[str, Any] | None = None,
    tags: Sequence[str] = (),
    max_parallel: int | None = None,
    origin: Run | None = None,
    fresh: bool = False,
    kubernetes: Mapping[str, Any] | None = None,
    yes: bool = False,
) -> tuple[Run, list[str]]:
    """Start a run of a class that a cell defines. `params` are by the parameters' names, as text or as values."""
    session.engine.check_process()
    program = program_of(session, cls)
    values = parameters.resolve(cls, params or {})
    life = (origin.spec.life if origin else "") or session.life
    code, warnings = _code(session, program, values, tuple(tags), life)
    cluster: Mapping[str, Any] | None = None

    def placed(spec: Spec) -> Spec:
        nonlocal cluster
        spec, cluster = session.placed(spec, kubernetes, yes, origin)
        return spec

    spec = build.spec_of(
        program,
        session.store,
        params=values,
        tags=tags,
        origin=origin.spec if origin else None,
        fresh=fresh,
        max_parallel=max_parallel or session.settings.max_parallel,
        code=code,
        notebook=str(notebook_path(session.shell) or ""),
        life=life,
        finish=placed,
    )
    keep_runs = session.settings.keep_runs
    view = session.engine.run(spec, environment(), os.getcwd(), list(sys.path), keep_runs=keep_runs, cluster=cluster)
    started = Run(spec, view, values, session.option(spec.flow))
    session.flow(spec.flow).runs.append(started)
    return started, [*program.notes, *warnings]


def resume(session: Session, last: Run, name: str, changed: Mapping[str, Any]) -> tuple[Run, list[str]]:
    """Go on with a run of the class that was called `name`, as it is defined now. `changed`: parameters by their names, as for `run`."""
    cls = session.flow_class(name)
    if cls is None:
        raise DefinitionError(
            Finding("%flow resume", f"run {last.id} is one of the class {name}, which this kernel does not know", "Run its cell first.")
        )
    known = parameters.parameters_of(cls)
    params = {known[n].name: value for n, value in last.params.items() if n in known} | dict(changed)
    again, notes = run(session, cls, params=params, tags=last.spec.tags, max_parallel=last.spec.max_parallel, origin=last)
    return again, notes + session.run_again(again, last)


def _code(
    session: Session, program: build.Program, values: Mapping[str, Any], tags: tuple[str, ...], life: str
) -> tuple[build.Code, list[str]]:
    """What the class needs in a worker; and what to tell the user."""
    space, mine = session.shell.user_ns, session.names.mine
    name = next(n for n, value in space.items() if value is program.cls)
    setups = session.of_cells().setups
    setup_made = {n for s in setups for n in (*s.body.makes, *s.body.others)}
    setup_reads = {n for s in setups for n in s.body.reads if n in session.plain() and n not in setup_made}
    captured = capture.capture(
        {name} | setup_reads,
        space,
        mine,
        session.store,
        skip=lambda n: (session.names.is_ours(n) and n not in mine) or n in setup_made or session.hidden(n),
        origin=session.cells.origin,
        label=session.code_label,
        readers=lambda n: f"flow {program.name}",
        secrets=session.settings.secrets,
    )
    sources = dict(captured.sources) | {s.filename: {"label": s.ran.label, "source": s.source} for s in setups}
    capture.keep_mentioned(captured, [cell["source"] for cell in sources.values()])
    roots = frozenset(root for setup in setups for root in setup.body.import_roots)
    known = keys.Known(
        captured,
        setup=keys.Setup(tuple(s.source for s in setups), roots, frozenset(setup_reads & set(captured.names))),
        params={n: codec.entry(session.store, n, value, main=space) for n, value in values.items()},
        space={**space, **mine},
        folder=Path.cwd(),
        life=life,
        tags=tags,
    )
    keys.deepen(known)
    code = build.Code(
        captures=captured.names,
        step_captures=tuple(sorted(captured.names)),
        sources=sources,
        modules=captured.modules,
        imports=capture.imports_beforehand(captured, [mine.get(n, space.get(n)) for n in captured.names], []),
        parts=lambda node: _parts(node, program, name, known),
        method=name,
        setup=tuple(s.filename for s in setups),
        setup_captures=tuple(sorted(known.setup.captures)),
    )
    return code, captured.warnings


def _parts(node: Node, program: build.Program, name: str, known: keys.Known) -> dict[str, str]:
    """A step's own text, the text of the class around the steps with all that both use, and the values of the class itself."""
    functions = node.use.functions
    texts = [linecache.getlines(file) for file in _files(program.cls)]
    common = ["".join(lines) for lines in texts]
    used = frozenset[str]().union(*(classgraph.common_names(text, program.graph.nodes, name) for text in common))
    names: Iterable[str] = ((classgraph.names_of(functions) | used) & known.captured.names.keys()) - {name}
    homes = {getattr(base, "__module__", "").partition(".")[0] for base in program.cls.__mro__}
    imports = classgraph.imports_of(functions) | (homes - {"__main__", "builtins", "flowbook"})
    told = bool(node.before) or bool(known.params)
    parts = keys.method_parts(classgraph.code_of(functions, plain=True), names, imports, told, known)
    around = [classgraph.common_text(text, program.graph.nodes, name) for text in common]
    parts["the class around its steps"] = canon.short_hash(json.dumps([around, _values(program.cls, known)]))
    return parts


def _files(cls: type) -> list[str]:
    """The cells in which the class and its bases are defined, as files."""
    bases = [base for base in cls.__mro__ if base.__module__ == "__main__"]
    code = [value.__code__ for base in bases for value in vars(base).values() if isinstance(value, types.FunctionType)]
    return list(dict.fromkeys(each.co_filename for each in code))


def _values(cls: type, known: keys.Known) -> list[str]:
    """What the attributes of the class are now: also what a default argument was when the cell ran."""
    found = []
    for base in cls.__mro__:
        if base.__module__ != "__main__":
            continue
        for name, value in sorted(vars(base).items()):
            told = value
            if isinstance(value, types.FunctionType):
                told = (value.__defaults__, value.__kwdefaults__)
            elif (name.startswith("__") and name.endswith("__")) or isinstance(value, (property, staticmethod, classmethod)):
                continue  # told by the text
            elif isinstance(value, parameters.Parameter):
                continue  # told by what it gives
            key = canon.content_key(told, main=dict(known.space), keys=lambda _: "", code=True)
            found.append(f"{name} {key or f'{known.life} {id(value)}'}")
    return found
