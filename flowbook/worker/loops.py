"""The seed's checkpoint block: a loop with a bare `save_checkpoint()` in it is rewritten so that it can be gone on with.

    for epoch in range(self.epochs):        entry = __flowbook_loops__.enter(SITE, range(self.epochs))
        train_one_epoch()                   if entry.restored:
        save_checkpoint()                       epoch = entry.take("epoch")     … and so on, each local name
                                            for epoch in entry.items():
                                                train_one_epoch()
                                                save_checkpoint()

``for … in checkpoint.loop(…)`` in a function is rewritten in the same way, so that names can be bound again; in a cell that needs no rewriting.
On a retry the code before the loop runs again, as plain Python does; then what was saved is bound on top (surroundings.py), and the
loop goes on with the next item. Of loops in loops the outermost is meant: its items are the places where all state is in names.
Lines, file names, closures and decorators stay as they are. What cannot be rewritten stays, too; then `save_checkpoint()` finds no
loop when it runs, and says so. Only reads and makes code: what `enter` does is in checkpoint.py.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import hashlib
import inspect
import itertools
import linecache
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

RUNTIME = "__flowbook_loops__"
ENTRY = "__flowbook_entry__"
_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Loop = ast.For | ast.While


@dataclass
class Site:
    """One rewritten loop, and what its text says of names. `locals` are those of its function; a cell has none."""

    label: str  # "train_flow.py, line 12"
    locals: tuple[str, ...] = ()
    first: str | None = None  # the first argument: `self` in a method
    assigned: frozenset[str] = frozenset()  # names that the loop binds or deletes
    mentioned: frozenset[str] = frozenset()  # names that stand in the loop
    dead: frozenset[str] = frozenset()  # names that each item binds before it reads them, and that nothing after the loop reads
    nested: bool = False  # save_checkpoint() stands in a loop within the loop
    cells: dict[str, types.CellType] = field(default_factory=dict)  # variables of the functions around this one
    text: str = ""  # see text_key
    comprehension: bool = False  # it is no statement, but a part of an expression


sites: list[Site] = []


def rewrite(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose loops with a bare `save_checkpoint()` can be gone on with; the function itself if it has none."""
    inner = inspect.unwrap(function)
    if not isinstance(inner, types.FunctionType):
        return function
    found = _definition(inner)
    if found is None:
        return function
    module, node, owner = found
    if not any(_targets(node.body)):
        return function
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    _rewrite_body(node, inner.__code__.co_filename, _locals_of(node, owner), owner, cells)
    code = _compiled(module, node, owner, inner)
    if code is None:
        return function
    if inner is not function:  # it is wrapped by a decorator, which calls the inner function: that is changed itself
        inner.__code__ = code
        return function
    made = types.FunctionType(code, inner.__globals__, inner.__name__, inner.__defaults__, inner.__closure__)
    made.__kwdefaults__, made.__qualname__, made.__module__ = inner.__kwdefaults__, inner.__qualname__, inner.__module__
    made.__doc__, made.__annotations__ = inner.__doc__, inner.__annotations__
    vars(made).update(vars(inner))
    return made


def rewrite_cell(tree: ast.Module, filename: str) -> None:
    """The same for the loops at the top level of a cell, in its tree itself. Its names are bound without that: they are main's."""
    if any(not _is_explicit(loop) for loop in _targets(tree.body)):
        _rewrite_body(tree, filename, ())


# ---- the text of loops ---------------------------------------------------------------------------------------------------


def text_key(loop: Loop) -> str:
    """What the statement says: comments and layout do not count, nor where it stands."""
    return hashlib.sha256(ast.dump(loop).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def text_keys(source: str) -> set[str]:
    """Those of all loops in a source."""
    module = parsed(source)
    return {text_key(node) for node in ast.walk(module) if isinstance(node, ast.For | ast.While)} if module is not None else set()


def parsed(source: str) -> ast.Module | None:
    """The tree of a file or a cell, whose lines of magic count as empty; None if it is no Python."""
    plain = re.sub(r"(?m)^([ \t]*)[%!].*$", r"\1pass", source)
    for text in dict.fromkeys((source, plain)):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            continue
    return None


def site_at(frame: types.FrameType) -> Site:
    """What the text tells of the loop in whose head a frame is, where it was not rewritten. Raises no error: it may tell nothing."""
    filename, line = frame.f_code.co_filename, frame.f_lineno
    module = parsed("".join(linecache.getlines(filename, frame.f_globals)))
    if module is None:
        return Site(f"{filename.rpartition('/')[2]}, line {line}")
    heads = [node for node in ast.walk(module) if isinstance(node, ast.For) and _has_line(node.iter, line)]
    if not heads:
        inside = any(isinstance(node, _COMPREHENSIONS) and _has_line(node, line) and _explicit_call(node) for node in ast.walk(module))
        return Site(f"{filename.rpartition('/')[2]}, line {line}", comprehension=inside)
    loop = heads[-1]
    around = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef) and loop in ast.walk(node)]
    return _site(around[-1] if around else module, loop, filename, None)


def _has_line(node: ast.expr, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


# ---- finding -------------------------------------------------------------------------------------------------------------


def _definition(function: types.FunctionType) -> tuple[ast.Module, ast.FunctionDef, ast.ClassDef | None] | None:
    """The tree of the function's file, its definition there, and the class around it."""
    code = function.__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    try:
        module = ast.parse("".join(lines), code.co_filename)
    except SyntaxError:
        return None
    for node, owner in _definitions(module, None):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if node.name == code.co_name and first == code.co_firstlineno:
            return module, node, owner
    return None


def _definitions(node: ast.AST, owner: ast.ClassDef | None) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child, owner
        yield from _definitions(child, child if isinstance(child, ast.ClassDef) else None if isinstance(child, _SCOPES) else owner)


def _targets(body: list[ast.stmt]) -> Iterator[Loop]:
    """The outermost loops that have a bare `save_checkpoint()` in them, or `checkpoint.loop` in their head."""
    for statement in body:
        if isinstance(statement, ast.For | ast.While) and (_saves(statement) or _is_explicit(statement)):
            yield statement
            continue
        if not isinstance(statement, _SCOPES):
            for block in _blocks(statement):
                yield from _targets(block)


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(statement, name, None)
        if isinstance(block, list):
            yield block
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _saves(loop: Loop) -> bool:
    return not _is_explicit(loop) and any(_is_save(node) for node in _inside(loop))


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """What stands below a node in the same scope, and not in a loop that `checkpoint.loop` already runs."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, _SCOPES) and not _is_explicit(child):
            yield from _inside(child)


def _is_save(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    if not isinstance(call, ast.Call) or call.args or call.keywords:
        return False
    return "save_checkpoint" in (getattr(call.func, "id", None), getattr(call.func, "attr", None))


def _is_explicit(node: ast.AST) -> bool:
    """Whether it is ``for … in checkpoint.loop(…)``, or ``for … in enumerate(checkpoint.loop(…))``."""
    return isinstance(node, ast.For) and _explicit_call(node.iter)


def _explicit_call(node: ast.AST) -> bool:
    calls = (each.func for each in ast.walk(node) if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute))
    return any(f.attr == "loop" and "checkpoint" in (getattr(f.value, "id", None), getattr(f.value, "attr", None)) for f in calls)


# ---- names ---------------------------------------------------------------------------------------------------------------


def _locals_of(node: ast.FunctionDef, owner: ast.ClassDef | None) -> tuple[str, ...]:
    """The local names of a function, as its code has them."""
    import symtable  # only for the seed's block

    alone = ast.FunctionDef(name="f", args=node.args, body=node.body, decorator_list=[], returns=None, lineno=1, col_offset=0)
    vars(alone).setdefault("type_params", [])
    text = "\n".join(f"  {line}" for line in ast.unparse(alone).split("\n"))
    table = symtable.symtable(f"class {owner.name if owner else 'f'}:\n{text}", "<names>", "exec").get_children()[-1]
    function = next(child for child in table.get_children() if child.get_name() == "f")
    return tuple(symbol.get_name() for symbol in function.get_symbols() if symbol.is_local())


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds or deletes in its scope."""
    for child in [node, *_in_scope(node)]:
        if isinstance(child, ast.Name) and not isinstance(child.ctx, ast.Load):
            yield child.id
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
        elif isinstance(child, ast.alias):
            yield (child.asname or child.name).partition(".")[0]
        elif isinstance(child, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and child.name:
            yield child.name
        elif isinstance(child, ast.MatchMapping) and child.rest:
            yield child.rest


def _in_scope(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, _COMPREHENSIONS):
            yield from (inner for inner in ast.walk(child) if isinstance(inner, ast.NamedExpr))
        elif not isinstance(child, _SCOPES):
            yield from _in_scope(child)


def _mentioned(*nodes: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        found |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} | set(_bound(node))
    return found


def _dead(loop: Loop, after: list[ast.stmt]) -> frozenset[str]:
    """Names that every item binds before anything reads them, and that are not mentioned after the loop."""
    first: dict[str, bool] = dict.fromkeys(_mentioned(loop.target), True) if isinstance(loop, ast.For) else {}
    for name in _mentioned(loop.test) if isinstance(loop, ast.While) else ():
        first.setdefault(name, False)
    for statement in loop.body:
        certain = _binds_first(statement)
        for name in _mentioned(statement):
            first.setdefault(name, name in certain)
    return frozenset(name for name, binds in first.items() if binds) - _mentioned(*after, *loop.orelse)


def _binds_first(statement: ast.stmt) -> set[str]:
    """Names that the statement binds, whatever happens, before it reads them."""
    if isinstance(statement, ast.Assign):
        names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
        return names - _mentioned(statement.value)
    if isinstance(statement, ast.AnnAssign) and statement.value is not None and isinstance(statement.target, ast.Name):
        return {statement.target.id} - _mentioned(statement.value)
    if isinstance(statement, ast.With):
        names = {item.optional_vars.id for item in statement.items if isinstance(item.optional_vars, ast.Name)}
        return names - _mentioned(*(item.context_expr for item in statement.items))
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set(_bound(statement))
    if isinstance(statement, ast.For) and isinstance(statement.target, ast.Name | ast.Tuple):
        return _mentioned(statement.target) - _mentioned(statement.iter, *statement.orelse)
    return set()


# ---- rewriting -----------------------------------------------------------------------------------------------------------


def _rewrite_body(
    node: ast.FunctionDef | ast.Module,
    filename: str,
    names: tuple[str, ...],
    owner: ast.ClassDef | None = None,
    cells: dict[str, types.CellType] | None = None,
) -> None:
    first = None
    if isinstance(node, ast.FunctionDef) and (positional := [*node.args.posonlyargs, *node.args.args]):
        first = _mangled(positional[0].arg, owner)
    found = []
    for block, place in list(_places(node.body)):
        loop = block[place]
        assert isinstance(loop, ast.For | ast.While)
        found.append((block, place, loop, _site(node, loop, filename, owner)))
    for block, place, loop, site in found:  # only now: the text of one tells of the names of another
        site.locals, site.first, site.cells = names, first, cells or {}
        sites.append(site)
        block[place : place + 1] = _rewritten(loop, len(sites) - 1, names, first)
    setattr(builtins, RUNTIME, runtime)


def _site(node: ast.FunctionDef | ast.Module, loop: Loop, filename: str, owner: ast.ClassDef | None) -> Site:
    after = [statement for statement in _statements(node.body) if statement.lineno > (loop.end_lineno or loop.lineno)]
    label = f"{filename.rpartition('/')[2]}, line {loop.lineno}"
    assigned, mentioned, dead = (
        frozenset(_mangled(name, owner) for name in names) for names in (_bound(loop), _mentioned(loop), _dead(loop, after))
    )
    nested = not any(_is_save(child) for child in _outside_loops(loop))
    return Site(label, assigned=assigned, mentioned=mentioned, dead=dead, nested=nested, text=text_key(loop))


def _mangled(name: str, owner: ast.ClassDef | None) -> str:
    """A private name as code has it: ``__x`` in class C is ``_C__x``."""
    if owner is None or not name.startswith("__") or name.endswith("__") or not owner.name.strip("_"):
        return name
    return f"_{owner.name.lstrip('_')}{name}"


def _places(body: list[ast.stmt]) -> Iterator[tuple[list[ast.stmt], int]]:
    """Where the loops stand that are to be rewritten, the last of a block first, so that places stay valid."""
    for place in reversed(range(len(body))):
        statement = body[place]
        if isinstance(statement, ast.For | ast.While) and (_saves(statement) or _is_explicit(statement)):
            yield body, place
            continue
        if not isinstance(statement, _SCOPES):
            for block in _blocks(statement):
                yield from _places(block)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        if not isinstance(statement, _SCOPES):
            for block in _blocks(statement):
                yield from _statements(block)


def _outside_loops(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (*_SCOPES, ast.For, ast.AsyncFor, ast.While)):
            yield from _outside_loops(child)


def _rewritten(loop: Loop, site: int, names: tuple[str, ...], first: str | None) -> list[ast.stmt]:
    explicit = _is_explicit(loop)
    enter = _parse(f"{RUNTIME}.at({site})\n{ENTRY} = {RUNTIME}.enter_named({site})" if explicit else f"{ENTRY} = {RUNTIME}.enter({site})")
    call = enter[-1].value  # type: ignore[attr-defined]
    if isinstance(loop, ast.For):
        call.args.append(loop.iter)
    lines = [
        f"    if {ENTRY}.has({name!r}):\n        {name} = {ENTRY}.take({name!r})\n    elif {ENTRY}.gone({name!r}):\n        del {name}\n"
        for name in names
        if name != first
    ]
    bind = _parse(f"if {ENTRY}.restored:\n{''.join(lines)}") if lines else []
    items = _parse(f"for __flowbook_turn__ in {ENTRY}.items():\n    pass")[0]
    assert isinstance(items, ast.For)
    if isinstance(loop, ast.For):
        items.target, items.body, items.orelse = loop.target, loop.body, loop.orelse
    else:
        leave = ast.If(ast.UnaryOp(ast.Not(), loop.test), [*loop.orelse, ast.Break()], [])
        items.body = [leave, *loop.body]
    for statement in (*enter, *bind, items):
        _locate(statement, loop)
    return [*enter, *bind, items]


def _parse(text: str) -> list[ast.stmt]:
    """Statements without a place in any file."""
    body = ast.parse(text).body
    for node in itertools.chain.from_iterable(map(ast.walk, body)):
        for name in ("lineno", "col_offset", "end_lineno", "end_col_offset"):
            vars(node).pop(name, None)
    return body


def _locate(node: ast.AST, loop: Loop) -> None:
    """Give what has no place that of the loop's head."""
    if "lineno" in node._attributes and "lineno" not in vars(node):
        vars(node).update(lineno=loop.lineno, col_offset=loop.col_offset, end_lineno=loop.lineno, end_col_offset=loop.col_offset + 1)
    for child in ast.iter_child_nodes(node):
        _locate(child, loop)


def _compiled(module: ast.Module, node: ast.FunctionDef, owner: ast.ClassDef | None, function: types.FunctionType) -> types.CodeType | None:
    """The code of the rewritten function, with the free variables of the one before; None if that cannot be."""
    node.decorator_list, node.returns = [], None
    node.args.defaults = [ast.Constant(None) for _ in node.args.defaults]
    node.args.kw_defaults = [default and ast.Constant(None) for default in node.args.kw_defaults]
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    free = [name for name in function.__code__.co_freevars if name != "__class__"]
    inner: ast.stmt = node
    if owner is not None:  # for private names, and for super()
        owner.body, owner.bases, owner.keywords, owner.decorator_list = [node], [], [], []
        inner = owner
    around = ast.parse(f"def around({', '.join(free)}):\n    pass").body[0]
    assert isinstance(around, ast.FunctionDef)
    around.body = [inner]
    module.body = [around]
    ast.fix_missing_locations(module)
    flags = function.__code__.co_flags & _FUTURES
    made = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    code = next((found for found in _codes(made) if found.co_name == node.name and found.co_firstlineno == node.lineno), None)
    if code is None or code.co_freevars != function.__code__.co_freevars:
        return None
    return code.replace(co_qualname=function.__qualname__)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from _codes(const)


# ---- running -------------------------------------------------------------------------------------------------------------


class _Plain:
    """A loop outside a task: nothing is saved, nothing restored."""

    restored = False

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable

    def items(self) -> Any:
        return self._iterable


class _Runtime:
    """What rewritten code calls. The functions are set by a task with checkpoints."""

    enter_live: Callable[..., Any] | None = None
    at_live: Callable[..., Any] | None = None
    enter_named_live: Callable[..., Any] | None = None

    def at(self, site: int) -> None:
        """Before the head of ``for … in checkpoint.loop(…)`` is evaluated."""
        if self.at_live is not None:
            self.at_live(sites[site], sys._getframe(1))

    def enter_named(self, site: int, iterable: Any) -> Any:
        """With what the head gave."""
        return _Plain(iterable) if self.enter_named_live is None else self.enter_named_live(sites[site], iterable, sys._getframe(1))

    def enter(self, site: int, *iterable: Any) -> Any:
        found = iterable[0] if iterable else itertools.repeat(None)
        if self.enter_live is None:
            return _Plain(found)
        return self.enter_live(sites[site], found, bool(iterable), sys._getframe(1))


runtime = _Runtime()
