"""What one cell reads, makes and changes, found from its text alone.

Nothing is executed. `read_body` walks the syntax tree along the control flow and keeps, for each name, the set of states
it can be in at that point of the cell:

    ABSENT    this cell has not touched the name: a use of it reads the value from outside
    BOUND     this cell has bound it
    DELETED   this cell has deleted it

A state is a bit mask of these (`ABSENT | BOUND` is "maybe"), so paths meet by `|` and loops are walked until nothing changes.
The rule everywhere: "maybe" is always safe, BOUND alone is a promise. An exception may come from anywhere inside `try` and
`with`, hence the collectors: each gathers every state that occurs while it is open.

Bodies of functions and lambdas run later, or never, so they have scopes but no flow (`_function_scope`). Class bodies and
comprehensions run at once and belong to the flow.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import io
import itertools
import random as _random
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from flowbook.errors import Finding

ABSENT, BOUND, DELETED = 1, 2, 4

GIVEN = frozenset({"card", "current", "checkpoint", "load_checkpoint", "save_checkpoint", "scratch"})  # flowbook binds these in every step
BUILTINS = (
    frozenset(dir(builtins))
    | GIVEN
    | {
        "display",
        "get_ipython",
        "__name__",
        "__file__",
        "__doc__",
        "__builtins__",
        "__annotations__",
        "__spec__",
        "__loader__",
        "__package__",
    }
)

VISIBLE_KINDS = frozenset({"import", "function", "class"})  # of `Body.others`: visible to later steps although no artifacts


@dataclass(frozen=True)
class Body:
    """One cell body (or one expression of an option), read.

    Names that come from Python or from flowbook (`BUILTINS`) are in `builtin_reads`, not in `reads`, unless the body changes
    or deletes them; a step above may still shadow one.
    """

    reads: dict[str, bool] = field(default_factory=dict)  # name → required: no path binds it here before the use
    builtin_reads: frozenset[str] = frozenset()
    immediate: frozenset[str] = frozenset()  # read while the cell runs, builtins and lambdas given to a call included
    deferred: dict[str, frozenset[str]] = field(default_factory=dict)  # function, class or lambda → its free names, builtins included
    makes: dict[str, bool] = field(default_factory=dict)  # public name → certain: bound whenever the body ends normally
    others: dict[str, str] = field(default_factory=dict)  # name → "loop" | "with" | "import" | "function" | "class" | "private" | "except"
    certain_others: frozenset[str] = frozenset()
    imports: dict[str, str] = field(default_factory=dict)  # bound name → what was imported: "numpy", "numpy.random", "random.shuffle"
    import_roots: frozenset[str] = frozenset()  # packages imported anywhere, functions included
    changes: frozenset[str] = frozenset()  # outside values changed in place
    rebinds: frozenset[str] = frozenset()  # those of `makes` that are bound by more than a change in place
    deletes: frozenset[str] = frozenset()  # deleted, at least on some path, and not bound again
    refusals: tuple[Finding, ...] = ()
    calls_random: bool = False  # draws from the global generator of `random` or numpy
    seeds_random: bool = False
    last_expression: bool = False  # ends in an expression whose value a notebook shows
    lines: dict[str, int] = field(default_factory=dict)  # name → line of its first use from outside

    def binds(self, name: str) -> bool:
        """Whether the body may bind or delete `name` itself, in whatever way."""
        return name in self.makes or name in self.others or name in self.deletes


def read_body(source: str, *, label: str = "", expression: bool = False) -> Body:
    """Reads one cell body, or with `expression` one expression of --foreach or --when.

    Never raises for what a user can write: what is wrong stands in `Body.refusals`, each with ``label, line n``. Top-level
    ``await`` is allowed. Line numbers are those of `source`, which therefore comes padded.
    """
    tree, findings = _parse(source, label, expression)
    if tree is None:
        return Body(refusals=findings)
    try:
        return _analyse(tree, source, label, findings)
    except RecursionError:
        return Body(
            refusals=(*findings, Finding(label, "the code is nested too deeply to be read", "split the expression into several lines"))
        )


def ast_key(source: str) -> str:
    """sha256 (hex) of the structure of `source`: comments and layout do not count, docstrings do.

    A text that does not parse counts letter by letter.
    """
    try:
        text = ast.dump(_compile(source, "exec", ast.PyCF_ONLY_AST))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        text = f"text {source}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---------------------------------------------------------------------------------------------------------------- parsing

_IPYTHON = (
    (re.compile(r"\s*%"), "%"),
    (re.compile(r"\s*!"), "!"),
    (re.compile(r"[^'\"#]*=\s*%\s*[A-Za-z]"), "%"),
    (re.compile(r"[^'\"#]*=\s*!"), "!"),
    (re.compile(r"\s*\?{1,2}\s*[\w.*%]+"), "?"),
    (re.compile(r"\s*[\w.*%\[\]]+\s*\?{1,2}\s*;?\s*$"), "?"),
)
_IPYTHON_REMEDY = {
    "%": "move the magic to a cell of its own; a step is plain Python",
    "!": "use subprocess.run(...) in a step, or move the command to a cell of its own",
    "?": "ask for help in a cell of its own",
}


def _compile(source: str, mode: str, flags: int = 0) -> ast.AST:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cell itself will say it once, when it is executed
        tree: ast.AST = compile(source, "<cell>", mode, flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return tree


def _parse(source: str, label: str, expression: bool) -> tuple[ast.Module | ast.Expression | None, tuple[Finding, ...]]:
    """The tree and what must be refused about the text; lines of IPython are blanked one by one, so that all are found."""
    if expression:
        try:
            tree = _compile(source.strip(), "eval", ast.PyCF_ONLY_AST)
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            return None, (Finding(label, f"not an expression: {_syntax_message(error)}: {source.strip()}"),)
        assert isinstance(tree, ast.Expression)
        return tree, ()
    lines = source.split("\n")
    findings: list[Finding] = []
    while True:
        try:
            tree = _compile("\n".join(lines), "exec", ast.PyCF_ONLY_AST)
            break
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            culprits = _ipython_lines(lines, error)
            if not culprits:
                return None, (*findings, _syntax_finding(error, source.split("\n"), label))
            for number, sign in culprits:
                text = lines[number].strip()
                findings.append(Finding(_where(label, number + 1), f"`{text}` is IPython, not Python", _IPYTHON_REMEDY[sign]))
                indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
                lines[number] = f"{indent}pass"
    assert isinstance(tree, ast.Module)
    return tree, tuple(findings)


def _ipython_lines(lines: list[str], error: BaseException) -> list[tuple[int, str]]:
    """Those lines (from 0) whose IPython syntax explains `error`; empty when it is another mistake."""
    if not isinstance(error, SyntaxError):
        return []
    number = (error.lineno or 0) - 1
    if 0 <= number < len(lines) and (sign := _ipython_sign(lines[number])):
        return [(number, sign)]
    # An open bracket or quote further down is reported in place of the magic line above it.
    candidates = [(n, line.strip()[0]) for n, line in enumerate(lines) if line.strip()[:1] in ("%", "!")]
    without = ["pass" if any(n == c for c, _ in candidates) else line for n, line in enumerate(lines)]
    try:
        _compile("\n".join(without), "exec", ast.PyCF_ONLY_AST)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
    return candidates


def _ipython_sign(line: str) -> str | None:
    return next((sign for pattern, sign in _IPYTHON if pattern.match(line)), None)


def _syntax_message(error: BaseException) -> str:
    return (error.msg if isinstance(error, SyntaxError) else str(error)) or "invalid syntax"


def _syntax_finding(error: BaseException, lines: list[str], label: str) -> Finding:
    number = getattr(error, "lineno", None)
    if not number:
        return Finding(label, f"syntax error: {_syntax_message(error)}")
    text = lines[number - 1].strip() if number <= len(lines) else ""
    return Finding(_where(label, number), f"syntax error: {_syntax_message(error)}" + (f": {text}" if text else ""))


def _where(label: str, line: int) -> str:
    return f"{label}, line {line}" if label else f"line {line}"


# ----------------------------------------------------------------------------------------------------- putting it together


def _analyse(tree: ast.Module | ast.Expression, source: str, label: str, findings: tuple[Finding, ...]) -> Body:
    flow = _Flow(future_annotations=_has_future_annotations(tree))
    if isinstance(tree, ast.Expression):
        flow.expr(tree.body)
    else:
        flow.block(tree.body)
    refused = _refusals(tree, flow, source, label)
    if not findings and not refused and isinstance(tree, ast.Module):
        refused = _compile_findings(source, label)
    final, certain_end = flow.end()
    makes, others, certain_others = _bound_names(flow, final, certain_end)
    deletes = frozenset(name for name in flow.deleted if final.get(name, ABSENT) & DELETED)
    reads = flow.all_reads()
    touched = flow.changes | deletes
    draws, seeds = _randomness(tree, flow.imports)
    return Body(
        reads={name: required for name, required in reads.items() if name not in BUILTINS or name in touched},
        builtin_reads=frozenset(name for name in reads if name in BUILTINS),
        immediate=frozenset(flow.immediate),
        deferred={name: frozenset(free) for name, free in flow.deferred.items() if name in makes or name in others},
        makes=makes,
        others=others,
        certain_others=certain_others,
        imports=dict(flow.imports),
        import_roots=_import_roots(tree),
        changes=frozenset(name for name in flow.changes if final.get(name, ABSENT) & BOUND),
        rebinds=frozenset(name for name in makes if set(flow.binders.get(name, ())) - {"change"}),
        deletes=deletes,
        refusals=(*findings, *refused),
        calls_random=draws,
        seeds_random=seeds,
        last_expression=isinstance(tree, ast.Module) and _shows_value(tree, source),
        lines={name: flow.lines[name] for name in reads if name in flow.lines},
    )


_ASSIGNING = frozenset({"assign", "global", "change"})
_KIND_ORDER = ("function", "class", "import", "with", "loop", "except")


def _bound_names(flow: _Flow, final: Mapping[str, int], certain_end: bool) -> tuple[dict[str, bool], dict[str, str], frozenset[str]]:
    """`makes`, `others` and `certain_others` from the state at the end.

    A name that is changed in place and required is there whenever the body runs at all, so it is certain even where the
    change itself stands in a branch.
    """
    makes: dict[str, bool] = {}
    others: dict[str, str] = {}
    certain_others = set()
    for name, kinds in flow.binders.items():
        mask = final.get(name, ABSENT)
        if not mask & BOUND:
            continue
        loaded = name in flow.changes and flow.reads.get(name, False) and not mask & DELETED
        certain = certain_end and (mask == BOUND or loaded)
        if _ASSIGNING & set(kinds) and not name.startswith("_"):
            makes[name] = certain
            continue
        others[name] = next((kind for kind in _KIND_ORDER if kind in kinds), "private")
        if _ASSIGNING & set(kinds):
            others[name] = "private"
        if certain:
            certain_others.add(name)
    return makes, others, frozenset(certain_others)


def _has_future_annotations(tree: ast.AST) -> bool:
    futures = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__")
    return any(alias.name == "annotations" for node in futures for alias in node.names)


def _import_roots(tree: ast.AST) -> frozenset[str]:
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            roots.add(node.module.partition(".")[0])
    return frozenset(roots - {"__future__"})


def _shows_value(tree: ast.Module, source: str) -> bool:
    """Whether a notebook would show the value of the last line: an expression without a semicolon after it."""
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        return False
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.DEDENT, tokenize.INDENT}
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type not in ignored]
    except (tokenize.TokenError, SyntaxError):
        return True
    return not tokens or tokens[-1].string != ";"


# ----------------------------------------------------------------------------------------------------------- what is refused


def _refusals(tree: ast.AST, flow: _Flow, source: str, label: str) -> tuple[Finding, ...]:
    found: list[tuple[int, str, str]] = []
    for node in _at_cell_level(tree):
        line = getattr(node, "lineno", 1)
        if isinstance(node, ast.Return):
            found.append((line, "`return` outside a function", "a step is a cell: use if/else, or assign the result to a name"))
        elif isinstance(node, ast.Yield | ast.YieldFrom):
            found.append((line, "`yield` outside a function", "collect the values in a list and assign it to a name"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            what = f"`from {'.' * node.level}{node.module or ''} import *` hides which names the step uses"
            found.append((node.lineno, what, "import the names that you use, one by one"))
        elif isinstance(node, ast.Call) and _dotted(node.func, flow.imports) == "getpass.getpass":
            found.append(
                (
                    node.lineno,
                    "`getpass()` waits for the keyboard, and a step has none",
                    "ask in a plain cell; pass the value with --env NAME",
                )
            )
    for line in flow.input_calls:
        found.append((line, "`input()` waits for the keyboard, and a step has none", "ask in a plain cell, or make the value a parameter"))
    for line in flow.shell_uses:
        found.append(
            (line, "`get_ipython()` is not there in a step", "a step runs outside the notebook: use plain Python, or a plain cell")
        )
    places = isinstance(tree, ast.Module)
    return tuple(Finding(_where(label, line) if places else label, what, remedy) for line, what, remedy in sorted(set(found)))


def _at_cell_level(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes that do not stand inside a function or lambda."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _at_cell_level(child)


def _compile_findings(source: str, label: str) -> tuple[Finding, ...]:
    """What only the compiler finds: `break` outside a loop, `nonlocal` at top level, a parameter named twice."""
    try:
        _compile(source, "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return (_syntax_finding(error, source.split("\n"), label),)
    return ()


# ------------------------------------------------------------------------------------------------------------------ randomness

_RANDOM_DRAWS = frozenset(name for name in _random.__all__ if name.islower() and name not in ("seed", "getstate", "setstate"))
_NUMPY_KEEPS = frozenset({"seed", "get_state", "set_state", "default_rng", "bit_generator", "mtrand", "test"})
_SEEDS = frozenset(
    {
        "random.seed",
        "random.setstate",
        "numpy.random.seed",
        "numpy.random.set_state",
        "torch.manual_seed",
        "torch.random.manual_seed",
        "tensorflow.random.set_seed",
    }
)
_USUAL_IMPORTS = {"np": "numpy", "tf": "tensorflow"}


def _randomness(tree: ast.AST, imports: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether the code, functions included, draws from a global generator, and whether it seeds one."""
    draws = seeds = False
    for node in ast.walk(tree):
        path = _dotted(node.func, imports) if isinstance(node, ast.Call) else None
        if path is None:
            continue
        seeds |= path in _SEEDS
        package, _, name = path.rpartition(".")
        draws |= package == "random" and name in _RANDOM_DRAWS
        draws |= package == "numpy.random" and name.islower() and name not in _NUMPY_KEEPS
    return draws, seeds


def _dotted(node: ast.expr, imports: Mapping[str, str]) -> str | None:
    """``np.random.rand`` → "numpy.random.rand", by the imports of this body and the usual ones; None for other expressions."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    root = imports.get(node.id) or _USUAL_IMPORTS.get(node.id, node.id)
    return ".".join([root, *reversed(parts)])


# ---------------------------------------------------------------------------------------------------------------- the scopes


@dataclass
class _Scope:
    """The names of one function: free ones (name → first line), and globals that it binds or deletes."""

    free: dict[str, int] = field(default_factory=dict)
    global_binds: set[str] = field(default_factory=set)
    global_deletes: set[str] = field(default_factory=set)


def _function_scope(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> _Scope:
    """The scope of a function's body; decorators, defaults and annotations belong to the scope around it."""
    visitor = _ScopeVisitor()
    arguments = node.args
    for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
        if argument is not None:
            visitor.bound.add(argument.arg)
    visitor.bound |= _type_params(node)
    for part in node.body if isinstance(node.body, list) else [node.body]:
        visitor.visit(part)
    return visitor.finish()


def _class_scope(node: ast.ClassDef) -> _Scope:
    """The names a class body and its methods use from outside; its decorators and bases are left to the scope around it."""
    flow = _Flow(nested=True)
    flow.class_body(node)
    free = {name: flow.lines.get(name, node.lineno) for name in flow.all_reads()}
    binds = {name for name, kinds in flow.binders.items() if "global" in kinds or "assign" in kinds}
    return _Scope(free, binds, set(flow.deleted))


def _type_params(node: ast.AST) -> set[str]:
    return {param.name for param in getattr(node, "type_params", ())}


class _ScopeVisitor(ast.NodeVisitor):
    """Gathers the names of one function scope; inner functions and classes have visitors of their own."""

    def __init__(self) -> None:
        self.bound: set[str] = set()
        self.used: dict[str, int] = {}
        self.globals: set[str] = set()
        self.nonlocals: set[str] = set()
        self.deleted: set[str] = set()
        self.inner = _Scope()

    def finish(self) -> _Scope:
        local = self.bound - self.globals - self.nonlocals
        free = {name: line for name, line in self.used.items() if name not in local and name != "__class__"}
        return _Scope(
            free,
            (self.bound & self.globals) | self.inner.global_binds,
            (self.deleted & self.globals) | self.inner.global_deletes,
        )

    def use(self, name: str, line: int) -> None:
        self.used.setdefault(name, line)

    def take(self, scope: _Scope, hidden: Iterable[str] = ()) -> None:
        for name, line in scope.free.items():
            if name not in hidden:
                self.use(name, line)
        self.inner.global_binds |= scope.global_binds
        self.inner.global_deletes |= scope.global_deletes

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.use(node.id, node.lineno)
            return
        self.bound.add(node.id)
        if isinstance(node.ctx, ast.Del):
            self.deleted.add(node.id)
            self.use(node.id, node.lineno)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.use(node.target.id, node.lineno)
        self.generic_visit(node)

    def visit_Global(self, node: ast.Global) -> None:
        self.globals |= set(node.names)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> None:
        self.nonlocals |= set(node.names)
        for name in node.names:  # bound in a function around this one
            self.use(name, node.lineno)

    def visit_Import(self, node: ast.Import) -> None:
        self.bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.bound |= {alias.asname or alias.name for alias in node.names}

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bound.add(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self.bound.add(node.name)
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.bound.add(node.name)

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.bound.add(node.rest)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)
        if not isinstance(node.target, ast.Name):  # a function does not evaluate the annotations of its own variables
            self.visit(node.annotation)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bound.add(node.name)
        self._visit_around(_definition_parts(node), _type_params(node))
        self.take(_function_scope(node))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_around(_definition_parts(node), set())
        self.take(_function_scope(node))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bound.add(node.name)
        self._visit_around(_definition_parts(node), _type_params(node))
        self.take(_class_scope(node), _type_params(node))

    def visit_TypeAlias(self, node: ast.AST) -> None:  # Python 3.12
        self.bound.add(node.name.id)  # type: ignore[attr-defined]
        self._visit_around([node.value], _type_params(node))  # type: ignore[attr-defined]

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        self.visit(node.generators[0].iter)
        parts = [g.iter for g in node.generators[1:]] + [test for g in node.generators for test in g.ifs] + _elements(node)
        targets = [g.target for g in node.generators]
        self._visit_around(parts + _target_parts(targets), set(_target_names(targets)))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def _visit_around(self, parts: Iterable[ast.expr], hidden: set[str]) -> None:
        """Visits expressions in which `hidden` names are those of an inner scope; a walrus there still binds here."""
        visitor = _ScopeVisitor()
        for part in parts:
            visitor.visit(part)
        self.take(_Scope(visitor.used), hidden)
        self.take(visitor.inner)
        self.bound |= visitor.bound


def _definition_parts(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef, annotations: bool = True) -> list[ast.expr]:
    """The expressions of a definition that are evaluated where it stands, in order."""
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)]
    arguments = node.args
    parts = [*arguments.defaults, *(default for default in arguments.kw_defaults if default is not None)]
    if isinstance(node, ast.Lambda):
        return parts
    every = (*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg)
    notes = [a.annotation for a in every if a is not None and a.annotation is not None] if annotations else []
    if annotations and node.returns is not None:
        notes.append(node.returns)
    return [*node.decorator_list, *parts, *notes]


def _elements(node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> list[ast.expr]:
    return [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]


def _target_names(targets: Iterable[ast.expr]) -> Iterator[str]:
    """The names that assignment targets bind, in order."""
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id
        elif isinstance(target, ast.Tuple | ast.List):
            yield from _target_names(target.elts)
        elif isinstance(target, ast.Starred):
            yield from _target_names([target.value])


def _target_parts(targets: Iterable[ast.expr]) -> list[ast.expr]:
    """The expressions that are evaluated to assign to targets such as ``a[i].b``."""
    parts: list[ast.expr] = []
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            parts += _target_parts(target.elts)
        elif isinstance(target, ast.Starred):
            parts += _target_parts([target.value])
        elif isinstance(target, ast.Subscript):
            parts += [target.value, target.slice]
        elif isinstance(target, ast.Attribute):
            parts.append(target.value)
    return parts


# ------------------------------------------------------------------------------------------------------------------ the flow

State = dict[str, int]


def _meet(*states: State | None) -> State | None:
    """Where paths come together; None is a path that does not arrive. Names that are simply ABSENT are left out."""
    live = [state for state in states if state is not None]
    if not live:
        return None
    names = set(itertools.chain.from_iterable(live))
    masks = {name: _or(state.get(name, ABSENT) for state in live) for name in names}
    return {name: mask for name, mask in masks.items() if mask != ABSENT}


def _or(masks: Iterable[int]) -> int:
    result = 0
    for mask in masks:
        result |= mask
    return result


@dataclass
class _Jumps:
    """The states that leave a loop's body by `break` and by `continue`."""

    breaks: State | None = None
    continues: State | None = None


# Context managers that never swallow an exception, by the last part of what is called: inside others, any line may be the last.
_HONEST_MANAGERS = frozenset(
    {
        *("open", "urlopen", "closing", "catch_warnings", "ZipFile"),
        *("TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile"),
        *("ThreadPoolExecutor", "ProcessPoolExecutor", "Pool"),
        *("no_grad", "enable_grad", "inference_mode", "autocast", "errstate", "option_context", "rc_context"),
    }
)
_CATCH_NAME_ERROR = frozenset({"NameError", "UnboundLocalError", "Exception", "BaseException"})
_CLASS_NAMES = ("__module__", "__qualname__")


class _Flow:
    """Walks a body along its control flow. `state` is the present one, None where no path arrives.

    Names of a class body live under a key of their own, ``name`` + space + id, since a class looks there first and then,
    past all functions, among the globals.
    """

    def __init__(self, *, future_annotations: bool = False, nested: bool = False) -> None:
        self.state: State | None = {}
        self.everything: State = {}  # a collector around the whole body, for bodies that never end normally
        self.collectors: list[State] = [self.everything]
        self.loops: list[_Jumps] = []
        self.evaluates_annotations = not future_annotations
        self.nested = nested  # reads one class within a function: nothing is "at top level"
        self.hidden: frozenset[str] = frozenset()  # targets of the comprehensions around
        self.class_id: int | None = None
        self.class_globals: set[str] = set()
        self.in_comprehension = False
        self.lazy = 0  # inside generator expressions that are not consumed where they stand
        self.guarded = 0  # inside a try that catches NameError
        self.reads: dict[str, bool] = {}
        self.late: dict[str, int] = {}  # read by functions that may run later: name → line
        self.immediate: set[str] = set()
        self.lines: dict[str, int] = {}
        self.binders: dict[str, list[str]] = {}
        self.changes: set[str] = set()
        self.deleted: set[str] = set()
        self.bound_later: set[str] = set()  # a function or a lazy generator binds it, at any time
        self.deleted_later: set[str] = set()
        self.deferred: dict[str, set[str]] = {}
        self.imports: dict[str, str] = {}
        self.input_calls: list[int] = []
        self.shell_uses: list[int] = []

    # -- results

    def end(self) -> tuple[State, bool]:
        """The state at the end, and whether the body can end normally at all; if not, whatever it might have bound."""
        return (self.state, True) if self.state is not None else (self.everything, False)

    def all_reads(self) -> dict[str, bool]:
        """`reads`, with those of functions: required only where nothing here binds the name."""
        reads = dict(self.reads)
        for name, line in self.late.items():
            reads[name] = reads.get(name, False) or name not in self.binders
            self.lines.setdefault(name, line)
        return reads

    # -- names

    def _key(self, name: str) -> str:
        return name if self.class_id is None or name in self.class_globals else f"{name} {self.class_id}"

    def _mask(self, key: str) -> int:
        return ABSENT if self.state is None else self.state.get(key, ABSENT)

    def _set(self, key: str, mask: int) -> None:
        if self.state is None:
            return
        self.state[key] = mask
        for collector in self.collectors:
            collector[key] = collector.get(key, ABSENT) | mask

    def read(self, name: str, line: int) -> None:
        if name in self.hidden:
            return
        maybe_bound = False
        if self.class_id is not None and not self.in_comprehension and self._key(name) != name:
            local = self._mask(self._key(name))
            if local == BOUND:
                return
            maybe_bound = bool(local & BOUND)
        mask = self._mask(name)
        if not mask & ABSENT:
            return
        self.immediate.add(name)
        self.lines.setdefault(name, line)
        if name == "get_ipython":
            self.shell_uses.append(line)
        if self.lazy:
            self.late.setdefault(name, line)
            return
        required = not (mask & BOUND or maybe_bound or self.guarded)
        self.reads[name] = self.reads.get(name, False) or required

    def bind(self, name: str, kind: str) -> None:
        key = self._key(name)
        if key != name:
            self._set(key, BOUND)
            return
        self.binders.setdefault(name, []).append(kind)
        if self.lazy:
            self.bound_later.add(name)
        self._set(name, BOUND | (DELETED if name in self.deleted_later else 0))

    def change(self, name: str, line: int) -> None:
        """`name` is changed in place: if its value may come from outside, that is a new version of it."""
        key = self._key(name)
        if key != name and self._mask(key) == BOUND:
            return
        outside = bool(self._mask(name) & ABSENT)
        self.read(name, line)
        if outside and name not in self.hidden:
            self.changes.add(name)
            self.binders.setdefault(name, []).append("change")
            self._set(name, BOUND)

    def delete(self, name: str, line: int) -> None:
        self.read(name, line)
        key = self._key(name)
        if key == name:
            self.deleted.add(name)
        self._set(key, DELETED | (BOUND if name in self.bound_later else 0))

    def defer(self, scope: _Scope, node: ast.AST, *, immediate: bool = False) -> None:
        """A function that may run at any time from now on."""
        for name, line in scope.free.items():
            if name in self.hidden or not self._mask(name) & ABSENT:
                continue
            self.late.setdefault(name, line)
            if immediate:
                self.immediate.add(name)
            if name == "get_ipython":
                self.shell_uses.append(line)
            if name == "input":
                self.input_calls += [call.lineno for call in ast.walk(node) if isinstance(call, ast.Call) and _is_input_call(call)]
        for name in sorted(scope.global_binds):
            self.binders.setdefault(name, []).append("global")
            self.bound_later.add(name)
            self._set(name, self._mask(name) | BOUND)
        for name in sorted(scope.global_deletes):
            self.deleted.add(name)
            self.deleted_later.add(name)
            self._set(name, self._mask(name) | DELETED)

    # -- expressions

    def expr(self, node: ast.AST | None) -> None:
        if node is None or self.state is None:
            return
        visit: Callable[[ast.AST], None] | None = getattr(self, f"expr_{type(node).__name__}", None)
        if visit is not None:
            visit(node)
            return
        for child in ast.iter_child_nodes(node):
            self.expr(child)

    def _either(self, *nodes: ast.AST) -> None:
        """Expressions of which each is evaluated only if the one before asks for it, and perhaps none."""
        states = [_copy(self.state)]
        for node in nodes:
            self.expr(node)
            states.append(_copy(self.state))
        self.state = _meet(*states)

    def expr_Name(self, node: ast.Name) -> None:
        self.read(node.id, node.lineno)

    def expr_BinOp(self, node: ast.BinOp) -> None:
        right = []
        left: ast.expr = node
        while isinstance(left, ast.BinOp):  # a long sum is a deep tree
            right.append(left.right)
            left = left.left
        self.expr(left)
        for part in reversed(right):
            self.expr(part)

    def expr_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.expr(node.value)
        self.bind(node.target.id, "assign")

    def expr_BoolOp(self, node: ast.BoolOp) -> None:
        self.expr(node.values[0])
        self._either(*node.values[1:])

    def expr_IfExp(self, node: ast.IfExp) -> None:
        self.expr(node.test)
        before = _copy(self.state)
        self.expr(node.body)
        after_body, self.state = self.state, before
        self.expr(node.orelse)
        self.state = _meet(after_body, self.state)

    def expr_Compare(self, node: ast.Compare) -> None:
        self.expr(node.left)
        self.expr(node.comparators[0])
        self._either(*node.comparators[1:])

    def expr_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            self.expr(key)
            self.expr(value)

    def expr_Call(self, node: ast.Call) -> None:
        self.expr(node.func)
        if _is_input_call(node) and "input" not in self.hidden and self._mask("input") & ABSENT and self._mask(self._key("input")) & ABSENT:
            self.input_calls.append(node.lineno)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            if isinstance(argument, ast.GeneratorExp):
                self._comprehension(argument)
            elif isinstance(argument, ast.Lambda):
                self._lambda(argument, immediate=True)
            else:
                self.expr(argument)

    def expr_Lambda(self, node: ast.Lambda) -> None:
        self._lambda(node, immediate=False)

    def _lambda(self, node: ast.Lambda, *, immediate: bool) -> None:
        for part in _definition_parts(node):
            self.expr(part)
        self.defer(_function_scope(node), node, immediate=immediate)

    def expr_GeneratorExp(self, node: ast.GeneratorExp) -> None:
        self.expr(node.generators[0].iter)  # only this is evaluated where the expression stands
        self.lazy += 1
        self._comprehension(node, first=False)
        self.lazy -= 1

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, *, first: bool = True) -> None:
        if first:
            self.expr(node.generators[0].iter)
        before, hidden, inside = _copy(self.state), self.hidden, self.in_comprehension
        targets = [generator.target for generator in node.generators]
        self.hidden = hidden | set(_target_names(targets))
        self.in_comprehension = True
        for number, generator in enumerate(node.generators):
            if number:
                self.expr(generator.iter)
            for part in (*_target_parts([generator.target]), *generator.ifs):
                self.expr(part)
        for part in _elements(node):
            self.expr(part)
        self.hidden, self.in_comprehension = hidden, inside
        self.state = _meet(before, self.state)  # there may be no items

    expr_ListComp = expr_SetComp = expr_DictComp = _comprehension

    # -- targets

    def target(self, node: ast.expr, kind: str) -> None:
        if isinstance(node, ast.Name):
            self.bind(node.id, kind)
        elif isinstance(node, ast.Tuple | ast.List):
            for part in node.elts:
                self.target(part, kind)
        elif isinstance(node, ast.Starred):
            self.target(node.value, kind)
        else:
            self._place(node)

    def _place(self, node: ast.expr) -> None:
        """Assignment to, or deletion of, ``a.b[c].d``: everything in it is read, and `a` is changed."""
        for part in _target_parts([node]):
            self.expr(part)
        root = node
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if isinstance(root, ast.Name):
            self.change(root.id, root.lineno)

    # -- statements

    def block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            if self.state is None:
                return  # no path comes here
            visit: Callable[[ast.stmt], None] | None = getattr(self, f"stmt_{type(statement).__name__}", None)
            if visit is not None:
                visit(statement)
            else:
                self.expr(statement)  # Expr, Pass, and what later versions may add

    def stmt_Assign(self, node: ast.Assign) -> None:
        self.expr(node.value)
        for target in node.targets:
            self.target(target, "assign")
            if isinstance(node.value, ast.Lambda) and isinstance(target, ast.Name):
                self._define(target.id, _function_scope(node.value))

    def stmt_AugAssign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            for part in _target_parts([node.target]):
                self.expr(part)
            self.expr(node.value)
            self._place(node.target)
            return
        name = node.target.id
        outside = bool(self._mask(name) & ABSENT) and self._key(name) == name
        self.read(name, node.lineno)
        self.expr(node.value)
        if outside:
            self.changes.add(name)
        self.bind(name, "change" if outside else "assign")

    def stmt_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.expr(node.value)
            self.target(node.target, "assign")
        if self.evaluates_annotations:
            self.expr(node.annotation)

    def stmt_Delete(self, node: ast.Delete) -> None:
        for target in _flat(node.targets):
            if isinstance(target, ast.Name):
                self.delete(target.id, target.lineno)
            else:
                self._place(target)

    def stmt_Global(self, node: ast.Global) -> None:
        if self.class_id is not None:
            self.class_globals |= set(node.names)

    def stmt_Nonlocal(self, node: ast.Nonlocal) -> None:
        """At top level this is an error of the compiler; in a class within a function the name is that function's."""

    def stmt_Return(self, node: ast.Return) -> None:
        self.expr(node.value)
        self.state = None

    def stmt_Raise(self, node: ast.Raise) -> None:
        self.expr(node.exc)
        self.expr(node.cause)
        self.state = None

    def stmt_Assert(self, node: ast.Assert) -> None:
        before = _copy(self.state)
        self.expr(node.test)
        after = _copy(self.state)
        self.expr(node.msg)
        self.state = _meet(before, after)  # with -O nothing of it is evaluated

    def stmt_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            self._import(alias.asname or root, alias.name if alias.asname else root)

    def stmt_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name != "*" and module != "__future__":
                self._import(alias.asname or alias.name, f"{module}.{alias.name}")

    def _import(self, name: str, path: str) -> None:
        self.bind(name, "import")
        if self._key(name) == name:
            self.imports[name] = path

    def stmt_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._with_hidden(_type_params(node), _definition_parts(node, self.evaluates_annotations))
        scope = _function_scope(node)
        if not node.decorator_list:  # nothing can call it before its name is bound: a recursive function reads itself
            scope.free.pop(node.name, None)
        self.defer(scope, node)
        self.bind(node.name, "function")
        self._define(node.name, scope)

    stmt_AsyncFunctionDef = stmt_FunctionDef

    def stmt_ClassDef(self, node: ast.ClassDef) -> None:
        self._with_hidden(_type_params(node), _definition_parts(node))
        self.class_body(node)
        self.bind(node.name, "class")
        if not self.nested:
            self._define(node.name, _class_scope(node))

    def stmt_TypeAlias(self, node: ast.AST) -> None:  # Python 3.12: the value is evaluated when it is asked for
        visitor = _ScopeVisitor()
        visitor.visit_TypeAlias(node)
        self.defer(_Scope(visitor.used), node)
        self.bind(node.name.id, "class")  # type: ignore[attr-defined]

    def _define(self, name: str, scope: _Scope) -> None:
        if self._key(name) == name and not self.nested:
            self.deferred.setdefault(name, set()).update(scope.free)

    def _with_hidden(self, names: set[str], parts: Iterable[ast.expr]) -> None:
        hidden = self.hidden
        self.hidden = hidden | names
        for part in parts:
            self.expr(part)
        self.hidden = hidden

    def class_body(self, node: ast.ClassDef) -> None:
        saved = self.class_id, self.class_globals, self.hidden, self.in_comprehension
        self.class_id, self.class_globals = id(node), set()
        self.hidden, self.in_comprehension = self.hidden | _type_params(node), False
        for name in _CLASS_NAMES:
            self.bind(name, "assign")
        self.block(node.body)
        suffix = f" {id(node)}"
        self.class_id, self.class_globals, self.hidden, self.in_comprehension = saved
        if self.state is not None:
            self.state = {key: mask for key, mask in self.state.items() if not key.endswith(suffix)}

    # -- branches and loops

    def stmt_If(self, node: ast.If) -> None:
        self.expr(node.test)
        before = _copy(self.state)
        self.block(node.body)
        after_body, self.state = self.state, before
        self.block(node.orelse)
        self.state = _meet(after_body, self.state)

    def stmt_While(self, node: ast.While) -> None:
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        head = _copy(self.state)
        while True:
            jumps = _Jumps()
            self.loops.append(jumps)
            self.state = _copy(head)
            self.expr(node.test)
            tested = _copy(self.state)
            self.block(node.body)
            self.loops.pop()
            grown = _meet(head, self.state, jumps.continues)
            if grown == head:
                break
            head = grown
        self.state = None if endless else tested
        self.block(node.orelse)
        self.state = _meet(self.state, jumps.breaks)

    def stmt_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.expr(node.iter)
        once = isinstance(node, ast.For) and self._has_items(node.iter)
        head = _meet(self.state)
        while True:
            jumps = _Jumps()
            self.loops.append(jumps)
            self.state = _copy(head)
            self.target(node.target, "loop")
            self.block(node.body)
            self.loops.pop()
            end = _meet(self.state, jumps.continues)
            grown = _meet(head, end)
            if grown == head:
                break
            head = grown
        self.state = _copy(end) if once else head
        self.block(node.orelse)
        self.state = _meet(self.state, jumps.breaks)

    stmt_AsyncFor = stmt_For

    def _has_items(self, node: ast.expr) -> bool:
        """Whether a loop over it surely runs once: a literal, or ``range(10)``."""
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            return any(not isinstance(part, ast.Starred) for part in node.elts)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            limit = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else 0
            own = self._mask("range") != ABSENT or self._mask(self._key("range")) != ABSENT
            return isinstance(limit, int) and limit > 0 and not own
        return False

    def stmt_Break(self, node: ast.Break) -> None:
        if self.loops:
            self.loops[-1].breaks = _meet(self.loops[-1].breaks, self.state)
        self.state = None

    def stmt_Continue(self, node: ast.Continue) -> None:
        if self.loops:
            self.loops[-1].continues = _meet(self.loops[-1].continues, self.state)
        self.state = None

    def stmt_Match(self, node: ast.Match) -> None:
        self.expr(node.subject)
        unmatched, ends = _copy(self.state), []
        for case in node.cases:
            if unmatched is None:
                break
            self.state = _copy(unmatched)
            self._pattern(case.pattern)
            matched = _copy(self.state)
            self.expr(case.guard)
            # A pattern may bind some of its names before it fails.
            certain = case.guard is None and _matches_all(case.pattern)
            unmatched = None if certain else _meet(unmatched, matched, self.state)
            self.block(case.body)
            ends.append(self.state)
        self.state = _meet(unmatched, *ends)

    def _pattern(self, node: ast.pattern) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.pattern):
                self._pattern(child)
            else:
                self.expr(child)
        name = getattr(node, "rest" if isinstance(node, ast.MatchMapping) else "name", None)
        if name:
            self.bind(name, "assign")

    # -- exceptions

    def stmt_With(self, node: ast.With | ast.AsyncWith) -> None:
        collector = dict(self.state or {})
        self.collectors.append(collector)
        honest = True
        for item in node.items:
            self.expr(item.context_expr)
            honest = honest and _is_honest(item.context_expr)
            if item.optional_vars is not None:
                self.target(item.optional_vars, "with")
        self.block(node.body)
        self.collectors.pop()
        if not honest:
            self.state = _meet(self.state, collector)

    stmt_AsyncWith = stmt_With

    def stmt_Try(self, node: ast.Try) -> None:
        if node.finalbody:
            self._finally(lambda: self._try(node), lambda: self.block(node.finalbody))
        else:
            self._try(node)

    stmt_TryStar = stmt_Try

    def _try(self, node: ast.Try) -> None:
        collector = dict(self.state or {})
        self.collectors.append(collector)
        catches = any(_catches_name_error(handler.type) for handler in node.handlers)
        self.guarded += catches
        self.block(node.body)
        self.guarded -= catches
        self.collectors.pop()
        self.block(node.orelse)
        ends = [self.state]
        several = type(node).__name__ == "TryStar"  # several handlers of except* may run, one after the other
        for handler in node.handlers:
            self.state = _meet(collector, *ends[1:]) if several else _copy(collector)
            self._handler(handler)
            ends.append(self.state)
        self.state = _meet(*ends)

    def _handler(self, node: ast.ExceptHandler) -> None:
        self.expr(node.type)
        name = node.name
        if name is None:
            self.block(node.body)
            return
        self.bind(name, "except")
        key = self._key(name)  # Python deletes the name however the handler is left
        self._finally(lambda: self.block(node.body), lambda: self._set(key, DELETED))

    def _finally(self, body: Callable[[], None], final: Callable[[], None]) -> None:
        """`final` runs after every way to leave `body`: normally, by an exception, by break and by continue."""
        collector = dict(self.state or {})
        jumps = _Jumps()
        self.collectors.append(collector)
        self.loops.append(jumps)
        body()
        self.loops.pop()
        self.collectors.pop()
        normal = self.state

        def after(state: State | None) -> State | None:
            self.state = _copy(state)
            if self.state is not None:
                final()
            return self.state

        after(collector)
        if self.loops:
            around = self.loops[-1]
            broken, continued = after(jumps.breaks), after(jumps.continues)
            around.breaks = _meet(around.breaks, broken)
            around.continues = _meet(around.continues, continued)
        self.state = after(normal)


def _copy(state: State | None) -> State | None:
    return None if state is None else dict(state)


def _flat(targets: Iterable[ast.expr]) -> Iterator[ast.expr]:
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            yield from _flat(target.elts)
        else:
            yield target


def _is_input_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input"


def _is_honest(node: ast.expr) -> bool:
    """Whether a context manager surely lets exceptions through."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
    return name in _HONEST_MANAGERS


def _catches_name_error(node: ast.expr | None) -> bool:
    if node is None:
        return True
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(isinstance(part, ast.Name) and part.id in _CATCH_NAME_ERROR for part in parts)


def _matches_all(pattern: ast.pattern) -> bool:
    if isinstance(pattern, ast.MatchOr):
        return any(map(_matches_all, pattern.patterns))
    return isinstance(pattern, ast.MatchAs) and (pattern.pattern is None or _matches_all(pattern.pattern))
