"""FlowSpec classes of the notebook: found by name, checked, run and resumed. They bind no names; a run is read through its handle.

The class goes along with a run as a capture does, by value, with what its methods use in turn; see capture.py. It is imported for the
first class: `%load_ext` need not wait for what it imports.
"""

from __future__ import annotations

import os
import sys
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
from flowbook.store import codec

if TYPE_CHECKING:
    from flowbook.kernel.session import Session


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
) -> tuple[Run, list[str]]:
    """Start a run of a class that a cell defines. `params` are by the parameters' names, as text or as values."""
    session.engine.check_process()
    program = program_of(session, cls)
    values = parameters.resolve(cls, params or {})
    life = (origin.spec.life if origin else "") or session.life
    code, warnings = _code(session, program, values, tuple(tags), life)
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
    )
    view = session.engine.run(spec, environment(), os.getcwd(), list(sys.path), keep_runs=session.settings.keep_runs)
    started = Run(spec, view, values)
    session.flow(spec.flow).runs.append(started)
    return started, [*program.notes, *warnings]


def resume(session: Session, last: Run, name: str) -> tuple[Run, list[str]]:
    """Go on with a run of the class that was called `name`, as it is defined now."""
    cls = session.flow_class(name)
    if cls is None:
        raise DefinitionError(
            Finding("%flow resume", f"run {last.id} is one of the class {name}, which this kernel does not know", "Run its cell first.")
        )
    known = parameters.parameters_of(cls)
    params = {known[n].name: value for n, value in last.params.items() if n in known}
    again, notes = run(session, cls, params=params, tags=last.spec.tags, max_parallel=last.spec.max_parallel, origin=last)
    return again, notes + session.run_again(again, last)


def _code(
    session: Session, program: build.Program, values: Mapping[str, Any], tags: tuple[str, ...], life: str
) -> tuple[build.Code, list[str]]:
    """What the class needs in a worker; and what to tell the user."""
    space, mine = session.shell.user_ns, session.names.mine
    name = next(n for n, value in space.items() if value is program.cls)
    setups = session.flow(None).setups
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
    code = build.Code(
        captures=captured.names,
        step_captures=tuple(sorted(captured.names)),
        sources=sources,
        modules=captured.modules,
        imports=capture.imports_beforehand(captured, [mine.get(n, space.get(n)) for n in captured.names], []),
        parts=lambda node: _parts(node, name, known),
        method=name,
        setup=tuple(s.filename for s in setups),
        setup_captures=tuple(sorted(known.setup.captures)),
    )
    return code, captured.warnings


def _parts(node: Node, name: str, known: keys.Known) -> dict[str, str]:
    functions = node.use.functions
    names: Iterable[str] = (classgraph.names_of(functions) & known.captured.names.keys()) - {name}
    told = bool(node.before) or bool(known.params)
    return keys.method_parts(classgraph.code_of(functions, plain=True), names, classgraph.imports_of(functions), told, known)
