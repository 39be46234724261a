"""Running a user's code in a namespace: cell bodies as a notebook runs them, and the expressions of --foreach and --when.

Shared by a task and by the serial reading, so that both run code in the same way.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dis
import functools
import inspect
import linecache
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowbook.spec.flow import Spec, Step
from flowbook.store.results import ITEM_LIMIT

Namespace = dict[str, Any]
_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_ITEM = "__flowbook_item__"


class PlanError(Exception):
    """--foreach or --when gives something that no plan can be made of."""


def fresh_main() -> types.ModuleType:
    """An empty `__main__`, in place of this program's own."""
    main = types.ModuleType("__main__")
    vars(main)["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main


def register_sources(spec: Spec) -> None:
    """Let tracebacks and `inspect` find the text of cells, by the names their code has."""
    for filename, cell in spec.sources.items():
        linecache.cache[filename] = (len(cell["source"]), None, cell["source"].splitlines(keepends=True), filename)
    for step in spec.steps:
        if step.filename not in spec.sources:
            linecache.cache[step.filename] = (len(step.source), None, step.source.splitlines(keepends=True), step.filename)


# ---- bodies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """A compiled cell: what runs first, and the last expression, whose value is shown.

    `binds` are the names which the text of the cell binds at its top level, in whatever way.
    """

    first: types.CodeType | None
    last: types.CodeType | None

    @functools.cached_property
    def binds(self) -> frozenset[str]:
        parts = [part for part in (self.first, self.last) if part is not None]
        return frozenset(i.argval for part in parts for i in dis.get_instructions(part) if i.opname in ("STORE_NAME", "STORE_GLOBAL"))


@functools.lru_cache(maxsize=64)  # a fork server compiles a body once for all its tasks
def compile_cell(source: str, filename: str, checkpoints: bool = False) -> Code:
    """Compile a cell as notebooks do: `await` is allowed at the top level, a last expression without `;` is shown. Raises SyntaxError.

    With `checkpoints` loops that call `save_checkpoint()` can be gone on with after a failure (loops.py).
    """
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(source, filename, "exec", flags | ast.PyCF_ONLY_AST, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    if checkpoints:
        from flowbook.worker import loops

        loops.rewrite_cell(tree, filename)
    last = tree.body.pop() if tree.body and _shown(tree.body[-1], source) else None
    first = compile(tree, filename, "exec", flags, dont_inherit=True) if tree.body else None
    if last is None:
        return Code(first, None)
    if first is not None:
        flags |= first.co_flags & _FUTURES  # a `from __future__` at the top holds for the whole cell
    return Code(first, compile(ast.Interactive([last]), filename, "single", flags, dont_inherit=True))


def _shown(statement: ast.stmt, source: str) -> bool:
    if not isinstance(statement, ast.Expr) or statement.end_lineno is None or statement.end_col_offset is None:
        return False
    # Only these line ends are Python's own; str.splitlines knows more, which may stand inside a string.
    line = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")[statement.end_lineno - 1]
    return not line.encode()[statement.end_col_offset :].lstrip().startswith(b";")


def run_code(code: Code, namespace: Namespace, show: Callable[[Any], None]) -> None:
    """Run a cell; `show` gets the value of its last expression. Raises what the cell raises."""
    parts = [part for part in (code.first, code.last) if part is not None]
    before, sys.displayhook = sys.displayhook, lambda value: None if value is None else show(value)
    try:
        if any(part.co_flags & inspect.CO_COROUTINE for part in parts):
            _run_in_loop(parts, namespace)
        else:
            for part in parts:
                exec(part, namespace)
    finally:
        sys.displayhook = before


def _run_in_loop(parts: list[types.CodeType], namespace: Namespace) -> None:
    import asyncio

    async def whole() -> None:
        for part in parts:
            result = eval(part, namespace)
            if part.co_flags & inspect.CO_COROUTINE:
                await result

    asyncio.run(whole())


@functools.lru_cache(maxsize=8)
def compile_program(source: str, filename: str) -> types.CodeType:
    code: types.CodeType = compile(source, filename, "exec", dont_inherit=True)
    return code


def run_program(source: str, filename: str, namespace: Namespace) -> None:
    """Run a file as Python would run it: `namespace` is its `__main__`."""
    exec(compile_program(source, filename), namespace)


def run_setup(spec: Spec, namespace: Namespace) -> None:
    """Run the %%flowsetup cells; values of last expressions are not shown."""
    for filename in spec.setup:
        run_code(compile_cell(spec.sources[filename]["source"], filename), namespace, lambda value: None)


# ---- expressions of options ------------------------------------------------------------------------------------------


def option_line(step: Step, sources: Mapping[str, Any], option: str) -> int:
    """The line of the step's cell on which an option stands; 1 if it is not found there (it may come from a default)."""
    text = sources.get(step.filename, {}).get("source", "")
    return next((number for number, line in enumerate(text.split("\n"), 1) if option in line), 1)


def _compile_option(step: Step, spec: Spec, option: str, text: str, mode: str) -> types.CodeType:
    """Compiled as if it stood in the line of the cell that holds the option, so that a traceback shows that line."""
    tree: Any = compile(text.strip(), step.filename, mode, ast.PyCF_ONLY_AST, dont_inherit=True)
    line = option_line(step, spec.sources, option)
    for node in ast.walk(tree):
        if hasattr(node, "lineno"):
            vars(node).update(lineno=line, end_lineno=line, col_offset=0, end_col_offset=0)
    code: types.CodeType = compile(tree, step.filename, mode, dont_inherit=True)
    return code


def bind_item(step: Step, spec: Spec, namespace: Namespace, value: Any) -> None:
    """Assign a fan-out's item to the target of --foreach, as a `for` would. Raises what unpacking raises."""
    foreach = step.options.foreach
    assert foreach is not None
    if foreach.names == (foreach.target.strip(),):
        namespace[foreach.names[0]] = value
        return
    code = _compile_option(step, spec, "--foreach", f"{foreach.target} = {_ITEM}", "exec")
    namespace[_ITEM] = value
    try:
        exec(code, namespace)
    finally:
        del namespace[_ITEM]


def holds(step: Step, spec: Spec, namespace: Namespace) -> bool:
    """Whether --when is true. The namespace is changed by what the expression binds (`:=`): give a copy."""
    assert step.options.when is not None
    return bool(eval(_compile_option(step, spec, "--when", step.options.when, "eval"), namespace))


def items_of(step: Step, spec: Spec, namespace: Namespace) -> Iterable[Any]:
    """What --foreach runs over, not yet iterated. Raises PlanError for what is no fan-out."""
    foreach = step.options.foreach
    assert foreach is not None
    value = eval(_compile_option(step, spec, "--foreach", foreach.expr, "eval"), namespace)
    shown = f'--foreach "{foreach.target} in {foreach.expr}"'
    if isinstance(value, (str, bytes, bytearray)):
        raise PlanError(
            f"{shown}: `{foreach.expr}` is a {type(value).__name__}; a task for each of its characters is rarely meant. "
            f"If it is: list({foreach.expr})."
        )
    try:
        iter(value)
    except TypeError:
        raise PlanError(f"{shown}: `{foreach.expr}` is a {type(value).__name__}, which cannot be iterated.") from None
    if hasattr(value, "__len__") and len(value) > ITEM_LIMIT:
        raise PlanError(f"{shown}: {len(value):,} items; at most {ITEM_LIMIT:,} are possible. Let each task do a part of them.")
    return value  # type: ignore[no-any-return]


def too_many(step: Step) -> PlanError:
    foreach = step.options.foreach
    assert foreach is not None
    return PlanError(
        f'--foreach "{foreach.target} in {foreach.expr}": more than {ITEM_LIMIT:,} items, or no end of them. Let each task do a part of them.'
    )
