"""A FlowSpec class as a graph of steps, read from the text of its methods. Nothing of the user's runs here.

    read(cls)     → Graph: a Node for each step, in an order in which each comes after those that lead to it, and all findings
    link(graph)   → the Steps of a Spec: scopes, who may have made what a step reads, what it may save

What a method reads and sets is found from the attributes of its `self`, through the methods and properties it uses in turn. Where
`self` leaves the method's own text (`helper(self)`, `vars(self)`), it may read and set everything: that costs a re-run on resume, never
a wrong value. A name that is read may be changed in place, so what is read may also be saved.

How a task finds a value: of the steps on the way back to the last join, the nearest that saved it. The way is that which was taken:
a switch hands over to one step, and a step that was not handed over to is skipped.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import linecache
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowbook.errors import Finding
from flowbook.spec.flow import Foreach, Input, Next, Options, Step, next_token
from flowbook.spec.flowspec import RESERVED, FlowSpec
from flowbook.store import layout

Function = types.FunctionType
_OWN = frozenset(name for name in vars(FlowSpec) if not name.startswith("_"))  # what FlowSpec itself gives
_NEXT = "next"


@dataclass(frozen=True)
class Use:
    """What a function does with the attributes of its `self`, itself and through the methods it uses."""

    reads: frozenset[str] = frozenset()
    sets: frozenset[str] = frozenset()
    leaves: bool = False  # self is given away: all may be read and set
    merges: bool = False
    tried: frozenset[str] = frozenset()  # what is set only where an error is caught
    needs: tuple[tuple[str, int], ...] = ()  # name and line of what is read without a way out: no try, no hasattr
    functions: tuple[Function, ...] = ()  # whose text counts, the method itself first


@dataclass(frozen=True)
class Node:
    """One step of the class. `label` and `line` say where it stands; `before` are the steps that lead to it."""

    name: str
    function: Function
    label: str
    line: int
    joins: bool
    use: Use
    next: Next | None = None
    next_line: int = 0
    before: tuple[str, ...] = ()
    stack: tuple[tuple[str, str, str], ...] = ()  # the splits around it that no join has closed: (step, kind, branch)

    @property
    def where(self) -> str:
        return f"step {self.name} ({self.label}, line {self.line})"

    @property
    def scope(self) -> tuple[str, ...]:
        return tuple(branch for _, kind, branch in self.stack if kind == "foreach")


@dataclass(frozen=True)
class Graph:
    name: str
    nodes: tuple[Node, ...] = ()
    start: str = ""
    end: str = ""
    findings: tuple[Finding, ...] = ()
    names: frozenset[str] = field(default=frozenset())  # of all artifacts that a text names

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)


# ---- reading a class ------------------------------------------------------------------------------------------------------


def read(cls: type, label: Callable[[str], str] | None = None, skip: Iterable[str] = ()) -> Graph:
    """The graph of a class. `label(filename)` is how people call a file or a cell; `skip`: attributes that are no artifacts
    (parameters, constants). All that is wrong stands in `findings`; the graph is then only for looking at.
    """
    told = label or (lambda filename: Path(filename).name)
    found: list[Finding] = []
    nodes = [_node(cls, function, told, found) for function in steps_of(cls)]
    known = {node.name: node for node in nodes}
    found += _names(cls, nodes)
    found += [finding for node in nodes for finding in _targets(cls, node, known)]
    start, end = _ends(cls, nodes, found)
    nodes = [dataclasses.replace(node, before=_before(node.name, nodes)) for node in nodes]
    if not found:
        nodes, more = _ordered(nodes, start)
        found += more
    if not found:
        nodes, more = _stacked(nodes, start, end)
        found += more
    skipped = {*skip, *_OWN, *known}
    nodes = [dataclasses.replace(n, use=dataclasses.replace(n.use, reads=n.use.reads - skipped)) for n in nodes]
    names = frozenset(name for node in nodes for name in node.use.reads | node.use.sets | ({_caught(node.function)} - {""}))
    graph = Graph(cls.__name__, tuple(nodes), start, end, tuple(dict.fromkeys(found)), names)
    return graph if found else dataclasses.replace(graph, findings=tuple(_unset(cls, graph)))


def steps_of(cls: type) -> list[Function]:
    """The methods with @step, in the order of definition, those of base classes first."""
    found: dict[str, Function] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Function) and getattr(value, "is_step", False):
                found[name] = value
            elif name in found:
                del found[name]  # overridden by what is no step
    return list(found.values())


def _node(cls: type, function: Function, label: Callable[[str], str], found: list[Finding]) -> Node:
    inner = wrapped(function)[-1]
    filename, line = inner.__code__.co_filename, inner.__code__.co_firstlineno
    node = Node(function.__name__, function, label(filename), line, False, Use(functions=(function,)))
    tree = definition(inner)
    if tree is None:
        found.append(Finding(node.where, "its source cannot be read", "Define the class in a file or in a notebook cell."))
        return node
    node = dataclasses.replace(node, line=tree.lineno)
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    if tree.args.vararg or tree.args.kwarg or tree.args.kwonlyargs or not 1 <= len(arguments) <= 2:
        what = f"takes {len(arguments)} arguments" if len(arguments) != 2 else "takes more than self and inputs"
        found.append(Finding(node.where, what, f"Write def {node.name}(self), or def {node.name}(self, inputs) for a join."))
        return node
    if isinstance(tree, ast.AsyncFunctionDef) or any(isinstance(part, ast.Yield | ast.YieldFrom) for part in _own_parts(tree)):
        found.append(Finding(node.where, "a step can be neither async nor a generator", "Call asyncio.run(…) in it, or use foreach."))
        return node
    way, way_line = _way(tree, arguments[0].arg, node, found)
    use = use_of(cls, function)
    if _wrapped(function):  # a decorator of the user's own may read and set what it likes
        use = dataclasses.replace(use, leaves=True)
    return dataclasses.replace(node, joins=len(arguments) == 2, next=way, next_line=way_line, use=use)


def wrapped(function: Function) -> list[Function]:
    """A function and those inside it, where decorators that know nothing of flows wrapped it with functools.wraps: the method last."""
    found = [function]
    while isinstance(inside := getattr(found[-1], "__wrapped__", None), Function) and inside not in found:
        found.append(inside)
    return found


def definition(function: Function) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The syntax tree of a function, with the line numbers of its file; None if its text is not there."""
    filename, line = function.__code__.co_filename, function.__code__.co_firstlineno
    for node in _functions("".join(linecache.getlines(filename))):
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        if node.name == function.__code__.co_name and first == line:
            return node
    return None


@functools.lru_cache(maxsize=32)
def _functions(source: str) -> tuple[ast.FunctionDef | ast.AsyncFunctionDef, ...]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        tree = _parse_cell(source)
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _parse_cell(source: str) -> ast.Module:
    """A cell may hold lines that are not Python; the class in it is."""
    lines = [("pass" if re.match(r"[%!]", line) else line) for line in source.split("\n")]
    try:
        return ast.parse("\n".join(lines))
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def _own_parts(tree: ast.AST) -> Iterator[ast.AST]:
    """The parts of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from _own_parts(child)


# ---- self.next ----------------------------------------------------------------------------------------------------------


def _way(tree: ast.FunctionDef | ast.AsyncFunctionDef, self_name: str, node: Node, found: list[Finding]) -> tuple[Next | None, int]:
    calls = [part for part in ast.walk(tree) if _is_next(part, self_name)]
    if not calls:
        return None, 0
    last = tree.body[-1]
    call = last.value if isinstance(last, ast.Expr) and _is_next(last.value, self_name) else None
    for other in calls:
        if other is not call:
            found.append(_misplaced(tree, other, node, alone=call is None and len(calls) == 1))
    if call is None:
        return None, 0
    assert isinstance(call, ast.Call)
    return _parse_next(call, self_name, node, found), call.lineno


def _is_next(part: ast.AST, self_name: str) -> bool:
    return (
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr == _NEXT
        and isinstance(part.func.value, ast.Name)
        and part.func.value.id == self_name
    )


def _misplaced(tree: ast.AST, call: ast.AST, node: Node, alone: bool) -> Finding:
    around = _around(tree, call)
    where = f"step {node.name} ({node.label}, line {getattr(call, 'lineno', node.line)})"
    words = {ast.If: "if", ast.Try: "try", ast.For: "for", ast.While: "while", ast.With: "with", ast.Match: "match"}
    inside = next((words[type(part)] for part in around if type(part) in words), None)
    if inside in ("if", "match"):
        return Finding(
            where,
            f"self.next stands inside `{inside}`: the graph is read before anything runs, so it cannot depend on a value that way",
            'Set an artifact and choose by it, as the last statement: self.next({"a": self.x, "b": self.y}, condition="choice").',
        )
    if inside is not None:
        return Finding(where, f"self.next stands inside `{inside}`", "Make it the last statement of the method, outside of every block.")
    if any(isinstance(part, ast.FunctionDef | ast.Lambda) for part in around):
        return Finding(where, "self.next stands inside a function of the method", "Make it the last statement of the method itself.")
    if alone:
        return Finding(where, "self.next is not the last statement", "Move what follows above it.")
    return Finding(where, "self.next is called more than once", "One call says it all: self.next(self.a, self.b) runs both.")


def _around(tree: ast.AST, inner: ast.AST) -> list[ast.AST]:
    """What lies between, innermost first."""
    for child in ast.iter_child_nodes(tree):
        if child is inner:
            return []
        found = _around(child, inner)
        if found or any(part is inner for part in ast.iter_child_nodes(child)):
            return [*found, child]
    return []


def _parse_next(call: ast.Call, self_name: str, node: Node, found: list[Finding]) -> Next | None:
    where = f"step {node.name} ({node.label}, line {call.lineno})"
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    unknown = [name for name in options if name not in ("foreach", "condition", "default", "num_parallel")]
    if unknown:
        near = difflib.get_close_matches(unknown[0] or "", ["foreach", "condition", "default"], 1)
        hint = f"Did you mean {near[0]}=?" if near else "It takes foreach=, or condition= and default=."
        found.append(Finding(where, f"self.next has no option {unknown[0] or '**'}", hint))
        return None
    if "num_parallel" in options:
        found.append(Finding(where, "num_parallel: gangs of tasks that run as one are not supported", "Use foreach=range(n)."))
        return None
    if len(call.args) == 1 and isinstance(call.args[0], ast.Dict):
        return _parse_switch(call.args[0], options, self_name, where, found)
    names = [_target(argument, self_name) for argument in call.args]
    if not names or None in names:
        wrong = next((ast.unparse(a) for a, name in zip(call.args, names, strict=True) if name is None), "")
        what = f"self.next({wrong}) does not name a step" if wrong else "self.next() names no step"
        found.append(Finding(where, what, "Write self.next(self.STEP), where STEP is a method with @step."))
        return None
    steps = tuple(str(name) for name in names)
    if "condition" in options or "default" in options:
        found.append(Finding(where, "condition= needs a dict", 'Write self.next({"value": self.STEP, …}, condition="name").'))
        return None
    if len(set(steps)) != len(steps):
        found.append(
            Finding(where, f"self.next names {steps[0]} twice", f'Run it several times with self.next(self.{steps[0]}, foreach="…").')
        )
        return None
    if "foreach" not in options:
        return Next("linear" if len(steps) == 1 else "split", steps)
    if len(steps) > 1:
        found.append(Finding(where, f"foreach takes one step, not {len(steps)}", "Let that one step split: self.next(self.a, self.b)."))
        return None
    given = options["foreach"]
    return Next("foreach", steps, given.value if isinstance(given, ast.Constant) and isinstance(given.value, str) else None)


def _parse_switch(cases: ast.Dict, options: Mapping[str | None, ast.expr], self_name: str, where: str, found: list[Finding]) -> Next | None:
    names = [_target(value, self_name) for value in cases.values]
    condition, default = options.get("condition"), options.get("default")
    last = _target(default, self_name) if default is not None else None
    if None in names or None in cases.keys or (default is not None and last is None):
        found.append(Finding(where, "a case of the switch does not name a step", 'Write {"value": self.STEP, …}.'))
    elif not isinstance(condition, ast.Constant) or not isinstance(condition.value, str):
        found.append(Finding(where, "a switch needs condition='NAME'", "NAME is the artifact that chooses; set it in this step."))
    elif "foreach" in options:
        found.append(Finding(where, "self.next takes either foreach or condition", "Let the step that is chosen fan out."))
    elif not names:
        found.append(Finding(where, "the switch has no case", 'Write {"value": self.STEP, …}.'))
    else:
        steps = tuple(dict.fromkeys([str(name) for name in names] + ([last] if last else [])))
        return Next("switch", steps, condition.value, last)
    return None


def _target(node: ast.expr | None, self_name: str) -> str | None:
    named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self_name
    return node.attr if named and isinstance(node, ast.Attribute) else None


# ---- what a method does with self ------------------------------------------------------------------------------------------


def use_of(cls: type, function: Function) -> Use:
    """What a method reads and sets, through the methods and properties of the class it uses in turn."""
    begin = wrapped(function)[::-1]
    found = Use(functions=tuple(begin))
    queue, seen = begin, {*begin}
    while queue:
        one = queue.pop(0)
        tree = definition(one)
        if tree is None or not (tree.args.posonlyargs or tree.args.args):
            found = dataclasses.replace(found, leaves=True)
            continue
        visitor = _Uses((tree.args.posonlyargs + tree.args.args)[0].arg, _class_name(one))
        for part in tree.body:
            visitor.visit(part)
        called = [f for name in sorted(visitor.reads | visitor.supers) for f in _helpers(cls, one, name, name in visitor.supers)]
        reads = {name for name in visitor.reads if not _is_code(cls, name)}
        found = Use(
            found.reads | reads,
            found.sets | visitor.sets,
            found.leaves or visitor.leaves,
            found.merges or "merge_artifacts" in visitor.reads,
            found.tried | (visitor.sets - visitor.firm),
            (*found.needs, *((n, line) for n, line in visitor.needs.items() if n in reads and n not in visitor.tested)),
            (*found.functions, *(f for f in called if f not in seen)),
        )
        queue += [f for f in called if f not in seen]
        seen.update(called)
    return found


def _helpers(cls: type, function: Function, name: str, by_super: bool) -> list[Function]:
    """The functions behind an attribute: a method that is no step, or the getter of a property."""
    bases = list(cls.__mro__)
    if by_super:
        home = next(
            (i for i, base in enumerate(bases) if any(function in wrapped(f) for f in vars(base).values() if isinstance(f, Function))), -1
        )
        bases = bases[home + 1 :]
    value = next((vars(base)[name] for base in bases if base not in (FlowSpec, object) and name in vars(base)), None)
    if isinstance(value, staticmethod | classmethod):
        return []  # they have no self
    if isinstance(value, property):
        return [f for f in (value.fget, value.fset) if isinstance(f, Function)]
    value = getattr(value, "func", value) if isinstance(value, functools.cached_property) else value
    return [value] if isinstance(value, Function) and (by_super or not getattr(value, "is_step", False)) else []


def _is_code(cls: type, name: str) -> bool:
    value = inspect.getattr_static(cls, name, None)
    return isinstance(value, Function | property | staticmethod | classmethod | functools.cached_property)


def _class_name(function: Function) -> str:
    return function.__qualname__.rpartition(".")[0].rpartition(".")[2]


class _Uses(ast.NodeVisitor):
    def __init__(self, self_name: str, class_name: str) -> None:
        self._self, self._class = self_name, class_name.lstrip("_")
        self.reads: set[str] = set()
        self.sets: set[str] = set()
        self.firm: set[str] = set()
        self.supers: set[str] = set()
        self.needs: dict[str, int] = {}
        self.tested: set[str] = set()
        self.leaves = False
        self._tries = 0

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self._is_self(node.value):
            self._take(node.attr, node.ctx, node.lineno)
        elif isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "super":
            self.supers.add(node.attr)
        else:
            self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        self._tries += 1
        self.generic_visit(node)
        self._tries -= 1

    def _take(self, name: str, context: ast.expr_context, line: int) -> None:
        if name.startswith("__") and not name.endswith("__"):
            name = f"_{self._class}{name}"  # as Python calls it
        if name == "__dict__":
            self.leaves = True
        if not self._tries and isinstance(context, ast.Load):
            self.needs.setdefault(name, line)
        elif not self._tries:
            self.firm.add(name)
        (self.reads if isinstance(context, ast.Load) else self.sets).add(name)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Attribute) and self._is_self(node.target.value):
            self.reads.add(node.target.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("getattr", "hasattr", "setattr", "delattr") and node.args and self._is_self(node.args[0]):
            given = node.args[1] if len(node.args) > 1 else None
            if isinstance(given, ast.Constant) and isinstance(given.value, str):
                self.tested.add(given.value)
                (self.reads if name in ("getattr", "hasattr") else self.sets).add(given.value)
            else:
                self.leaves = True
            for part in node.args[1:]:
                self.visit(part)
            return
        if _is_next(node, self._self):
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in ("foreach", "condition") and isinstance(value, str):
                    self.reads.add(value)
                    self.needs.setdefault(value, node.lineno)
                elif keyword.arg == "foreach":
                    self.visit(keyword.value)
            return
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id == self._self:
            self.leaves = True

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._self


# ---- checks: one function per rule ------------------------------------------------------------------------------------------


def _names(cls: type, nodes: list[Node]) -> Iterator[Finding]:
    if not nodes:
        yield Finding(f"flow {cls.__name__}", "it has no step", "Mark methods with @step; the first is called start, the last end.")
    for node in nodes:
        if node.name in RESERVED or node.name in _OWN:
            yield Finding(node.where, f"{node.name!r} is a word of the flow itself", "Give the step another name.")
        elif node.name.startswith("_") or not layout.NAME.match(node.name):
            yield Finding(node.where, f"{node.name!r} is not a step's name", "Use letters, digits and _, a letter first, at most 64.")
        if node.name != node.function.__name__:
            yield Finding(node.where, "its function has another name", "Define it with def.")
    methods = {name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, Function)}
    for node in nodes:
        for name in sorted((node.use.sets - node.use.tried) & methods):
            yield Finding(node.where, f"it sets self.{name}, which is a method of the flow", "Give the artifact another name.")


def _is_method(cls: type, name: str) -> bool:
    return name not in _OWN and isinstance(inspect.getattr_static(cls, name, None), Function)


def _targets(cls: type, node: Node, known: Mapping[str, Node]) -> Iterator[Finding]:
    where = f"step {node.name} ({node.label}, line {node.next_line})"
    for name in node.next.steps if node.next else ():
        if name not in known and _is_method(cls, name):
            yield Finding(where, f"self.next(self.{name}): {name} is a method, but no step", f"Put @step above def {name}.")
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean self.{near[0]}?" if near else f"Steps: {', '.join(known)}."
            yield Finding(where, f"self.next(self.{name}): there is no step {name!r}", hint)
    if node.next and node.next.kind == "foreach" and (target := known.get(node.next.steps[0])) and target.joins:
        yield Finding(where, f"foreach leads straight into the join {target.name}", "Put a step between that runs once for each item.")


def _unset(cls: type, graph: Graph) -> Iterator[Finding]:
    """What a step reads although nothing on the way to it sets it: a typo, or what a join did not take over. Only where that is sure."""
    regions = _regions(graph)
    for node in graph.nodes:
        on_the_way = [graph.node(name) for name in (*regions[node.name], node.name)]
        if any(step.use.leaves or step.use.merges for step in on_the_way):
            continue
        known = {name for step in on_the_way for name in step.use.sets} | {_caught(step.function) for step in on_the_way}
        for name, line in dict(node.use.needs).items():
            if name in known or name not in node.use.reads or name == "name" or hasattr(cls, name):
                continue
            where = f"step {node.name} ({node.label}, line {line})"
            maker = next((other.name for other in graph.nodes if name in other.use.sets), None)
            near = difflib.get_close_matches(name, known - {""}, 1)
            if maker is not None and maker not in [step.name for step in on_the_way]:
                remedy = f"A join takes over what it sets itself: self.{name} = inputs[0].{name}, or self.merge_artifacts(inputs)."
                yield Finding(where, f"it reads self.{name}, which step {maker} sets on no way that leads here", remedy)
            else:
                hint = f"Did you mean self.{near[0]}?" if near else f"There are: {', '.join(sorted(known - {''})) or 'none'}."
                yield Finding(where, f"it reads self.{name}, which no step before it sets", hint)


def _wrapped(function: Function) -> bool:
    """Whether a decorator of the user's own is around it, which may set what it likes."""
    marks = getattr(function, "__flowbook_marks__", ())
    return hasattr(function, "__wrapped__") or any(getattr(mark, "function", None) is not None for mark in marks)


def _caught(function: Function) -> str:
    """The variable of @catch."""
    marks = getattr(function, "__flowbook_marks__", ())
    return next((str(mark.arguments.get("var") or "") for mark in marks if mark.name == "catch"), "")


def _ends(cls: type, nodes: list[Node], found: list[Finding]) -> tuple[str, str]:
    flow = f"flow {cls.__name__}"
    ends = []
    for word in ("start", "end"):
        marked = [n.name for n in nodes if getattr(getattr(n.function, "__flowbook_step__", None), word, False)]
        named = (
            marked
            or [n.name for n in nodes if n.name == word]
            or ([nodes[0].name] if len(nodes) == 1 and not _is_method(cls, word) else [])
        )
        if len(marked) > 1:
            found.append(Finding(flow, f"{', '.join(marked)} are all marked {word}=True", "One step is the " + word + "."))
        elif not named and nodes and _is_method(cls, word):
            found.append(Finding(flow, f"{word} is a method, but no step", f"Put @step above def {word}."))
        elif not named and nodes:
            found.append(Finding(flow, f"it has no step {word!r}", f"Name one {word}, or mark it: @step({word}=True)."))
        ends.append(named[0] if named else "")
    start, end = ends
    for node in nodes:
        if node.name == end and node.next is not None:
            found.append(Finding(node.where, "the last step calls self.next", "Remove the call, or mark another step @step(end=True)."))
        if node.name != end and end and node.next is None and not any(f.where.startswith(f"step {node.name} (") for f in found):
            found.append(Finding(node.where, "it does not say how the flow goes on", "End it with self.next(self.STEP)."))
        if node.name == start and (node.joins or any(n.next and start in n.next.steps for n in nodes if n is not node)):
            found.append(Finding(node.where, "the first step comes after no other", "Nothing may lead back to it, and it takes no inputs."))
    return start, end


def _before(name: str, nodes: Iterable[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes if node.next and name in node.next.steps and node.name != name)


def _loops(node: Node) -> bool:
    return node.next is not None and node.name in node.next.steps


def _ordered(nodes: list[Node], start: str) -> tuple[list[Node], list[Finding]]:
    """In an order in which each step comes after those that lead to it; the order of definition, as far as that goes."""
    found = []
    for node in nodes:
        if _loops(node) and node.next and node.next.kind != "switch":
            found.append(
                Finding(
                    node.where,
                    "it leads to itself for ever",
                    'Loop by a switch: self.next({True: self.again, False: self.out}, condition="more").',
                )
            )
    known = {node.name: node for node in nodes}
    reached, queue = {start}, [start]
    while queue:
        for name in way.steps if (way := known[queue.pop()].next) else ():
            if name not in reached:
                reached.add(name)
                queue.append(name)
    for node in nodes:
        if node.name not in reached:
            found.append(
                Finding(node.where, f"nothing leads to it from {start}", f"Add self.next(self.{node.name}) to a step, or remove it.")
            )
    ordered: list[Node] = []
    left = [node for node in nodes if node.name in reached]
    while left:
        done = {node.name for node in ordered}
        ready = next((node for node in left if set(node.before) & reached <= done), None)
        if ready is None:
            circle = ", ".join(node.name for node in left)
            found.append(
                Finding(left[0].where, f"the steps {circle} lead to each other in a circle", "A step may only repeat itself, by a switch.")
            )
            return nodes, found
        ordered.append(ready)
        left.remove(ready)
    return ordered, found


def _stacked(nodes: list[Node], start: str, end: str) -> tuple[list[Node], list[Finding]]:
    """Each node with the splits around it. Every split must be closed by one join that takes all its branches."""
    stacks: dict[str, tuple[tuple[str, str, str], ...]] = {start: ()}
    known = {node.name: node for node in nodes}
    found: list[Finding] = []
    result = []
    for node in nodes:
        if node.name != start:
            arriving = [_after(known[name], node.name, stacks[name]) for name in node.before]
            stack = _joined(node, arriving, known, found) if node.joins else _same(node, arriving, found)
            stacks[node.name] = stack
        result.append(dataclasses.replace(node, stack=stacks[node.name]))
        if node.name == end and stacks[node.name] and not found:
            open_split = stacks[node.name][-1][0]
            found.append(
                Finding(
                    node.where,
                    f"the flow ends, but the {stacks[node.name][-1][1]} of step {open_split} was never joined",
                    f"Put a step with `inputs` before it, or write def {node.name}(self, inputs).",
                )
            )
        if found:
            break
    return (result if not found else nodes), found


def _after(node: Node, target: str, stack: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str, str], ...]:
    kind = node.next.kind if node.next else ""
    return (*stack, (node.name, kind, target)) if kind in ("split", "foreach") else stack


def _same(node: Node, arriving: list[tuple[tuple[str, str, str], ...]], found: list[Finding]) -> tuple[tuple[str, str, str], ...]:
    if len(set(arriving)) > 1:
        found.append(
            Finding(
                node.where,
                f"it is reached from {', '.join(node.before)}, which are different branches",
                f"To bring branches together it must take them: def {node.name}(self, inputs).",
            )
        )
    return arriving[0] if arriving else ()


def _joined(
    node: Node, arriving: list[tuple[tuple[str, str, str], ...]], known: Mapping[str, Node], found: list[Finding]
) -> tuple[tuple[str, str, str], ...]:
    if any(not stack for stack in arriving):
        name = next(name for name, stack in zip(node.before, arriving, strict=True) if not stack)
        found.append(Finding(node.where, f"it takes inputs, but {name} comes from no split or foreach", f"Write def {node.name}(self)."))
        return ()
    tops = {(stack[:-1], stack[-1][:2]) for stack in arriving}
    if len(tops) > 1:
        splits = ", ".join(sorted({stack[-1][0] for stack in arriving}))
        found.append(
            Finding(node.where, f"it joins branches of different splits ({splits})", "Join the inner split first, in a step of its own.")
        )
        return ()
    outer, (split, kind) = next(iter(tops))
    taken = {stack[-1][2] for stack in arriving}
    branches = set(way.steps if (way := known[split].next) else ())
    if kind == "split" and taken != branches:
        found.append(
            Finding(
                node.where,
                f"it joins {len(taken)} of the {len(branches)} branches of step {split}; {', '.join(sorted(branches - taken))} does not come here",
                "One join takes all branches of a split.",
            )
        )
    return outer


# ---- the steps of a spec ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linked:
    steps: tuple[Step, ...]


def link(
    graph: Graph, options: Mapping[str, Options], *, method: str, params: Mapping[str, frozenset[str]] | None = None
) -> tuple[Step, ...]:
    """The steps of a graph without findings, in order. `options` are those of the decorators; `params`: step → parameters it reads."""
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    regions = _regions(graph)
    below: dict[str, set[str]] = {node.name: set() for node in graph.nodes}
    for name, region in regions.items():
        for above in region:
            below[above].add(name)
    reads = {node.name: node.use.reads if not node.use.leaves else graph.names for node in graph.nodes}
    saves = {node.name: _saves(node, graph, reads, below, regions) for node in graph.nodes}
    return tuple(_step(node, graph, options[node.name], method, reads, saves, regions, position, params or {}) for node in graph.nodes)


def _regions(graph: Graph) -> dict[str, frozenset[str]]:
    """Step → the steps whose artifacts it inherits: back to the last join, itself included there."""
    found: dict[str, frozenset[str]] = {}
    for node in graph.nodes:
        found[node.name] = frozenset() if node.joins else frozenset(node.before).union(*(found[name] for name in node.before))
    return found


def _saves(
    node: Node,
    graph: Graph,
    reads: Mapping[str, frozenset[str]],
    below: Mapping[str, set[str]],
    regions: Mapping[str, frozenset[str]],
) -> frozenset[str]:
    found = node.use.sets | node.use.reads | ({_caught(node.function)} - {""})
    if node.use.leaves:
        found |= frozenset(name for other in below[node.name] for name in reads[other])
    if node.use.merges:
        found |= graph.names
    return found


def _step(
    node: Node,
    graph: Graph,
    options: Options,
    method: str,
    reads: Mapping[str, frozenset[str]],
    saves: Mapping[str, frozenset[str]],
    regions: Mapping[str, frozenset[str]],
    position: Mapping[str, int],
    params: Mapping[str, frozenset[str]],
) -> Step:
    nearest = sorted(regions[node.name], key=lambda name: -position[name])
    inputs = [
        Input(name, makers, required=False)
        for name in sorted(reads[node.name])
        if (makers := tuple(maker for maker in nearest if name in saves[maker]))
    ]
    before = tuple(sorted(node.before, key=lambda name: -position[name]))
    splitter = next((graph.node(name) for name in node.before if _fans_out(graph.node(name), node.name)), None)
    if node.joins:
        options = dataclasses.replace(options, join=tuple(sorted(node.before, key=lambda name: position[name])))
    elif before:
        inputs = [Input(next_token(node.name), before), *inputs]
    if splitter is not None and splitter.next is not None:
        options = dataclasses.replace(options, foreach=Foreach("self.input", splitter.next.name or "the items", ()))
    tokens = [next_token(name) for name in (node.next.steps if node.next else ()) if name != node.name]
    catch = [options.catch] if options.catch else []
    return Step(
        name=node.name,
        source="",
        filename=wrapped(node.function)[-1].__code__.co_filename,
        label=node.label,
        options=options,
        scope=node.scope,
        inputs=tuple(inputs),
        host=splitter.name if splitter else None,
        hosted=tuple(node.next.steps) if node.next and node.next.kind == "foreach" else (),
        saves=tuple(dict.fromkeys([*sorted(saves[node.name]), *catch, *tokens])),
        params=tuple(sorted(params.get(node.name, ()))),
        method=method,
        next=node.next,
        joins=node.joins,
        merges=node.use.merges,
    )


def _fans_out(node: Node, target: str) -> bool:
    return node.next is not None and node.next.kind == "foreach" and target in node.next.steps


# ---- what the cache counts as a step's code -----------------------------------------------------------------------------------


def code_of(functions: Iterable[Function], *, plain: bool = False) -> str:
    """The text of functions in a form that comments and layout do not change; `plain`: as Python."""
    trees = [tree for function in functions if (tree := definition(function)) is not None]
    if plain:
        return "\n".join(ast.unparse(_without_docstring(tree)) for tree in trees)
    return "\n".join(ast.dump(_without_docstring(tree)) for tree in trees)


def _without_docstring(tree: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
    copy = ast.parse(textwrap.dedent(ast.unparse(tree))).body[0]
    assert isinstance(copy, ast.FunctionDef | ast.AsyncFunctionDef)
    if ast.get_docstring(copy) is not None:
        copy.body = copy.body[1:] or [ast.Pass()]
    copy.decorator_list = [each for each in copy.decorator_list if not _is_ours(each)]
    return copy


def _is_ours(decorator: ast.expr) -> bool:
    """Whether a decorator is one of flowbook's, which change no result; those of the user's own count with their arguments."""
    return _named(decorator) in OURS


def _named(decorator: ast.expr) -> str:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


OURS = frozenset("step card catch checkpoint conda environment kubernetes parallel pypi resources retry secrets timeout batch".split())


class _Bare(ast.NodeTransformer):
    """A text without the bodies of steps, and without docstrings: what all steps of a class have in common."""

    def __init__(self, steps: frozenset[tuple[str, int]]) -> None:
        self._steps = steps

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST | None:
        return self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST | None:
        if (node.name, node.lineno) in self._steps or any(_named(each) == "step" for each in node.decorator_list):
            return None
        return self._shorn(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._shorn(node)

    def _shorn(self, node: Any) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        node.body = node.body or [ast.Pass()]
        return node  # type: ignore[no-any-return]


def common_text(source: str, nodes: Iterable[Node], flow: str) -> str:
    """The text of a file or a cell without the bodies of its steps, comments, docstrings and the call that starts the command line."""
    return ast.dump(_common(source, nodes, flow))


def common_names(source: str, nodes: Iterable[Node], flow: str) -> frozenset[str]:
    """The names in that text."""
    return frozenset(part.id for part in ast.walk(_common(source, nodes, flow)) if isinstance(part, ast.Name))


def _common(source: str, nodes: Iterable[Node], flow: str) -> ast.Module:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        tree = _parse_cell(source)
    steps = frozenset((node.name, node.line) for node in nodes)
    _Bare(steps).visit(tree)
    for statement in tree.body:
        if isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test):
            statement.body = [each for each in statement.body if not _starts(each, flow)] or [ast.Pass()]
    if tree.body and ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:]
    return tree


def _starts(statement: ast.stmt, flow: str) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call) and ast.unparse(statement.value.func) == flow


def names_of(functions: Iterable[Function]) -> frozenset[str]:
    """The names that functions mention other than as attributes: globals of their module may be among them."""
    trees: list[Any] = [definition(function) for function in functions]
    return frozenset(part.id for tree in trees if tree is not None for part in ast.walk(tree) if isinstance(part, ast.Name))


def imports_of(functions: Iterable[Function]) -> frozenset[str]:
    """Root names of the modules that functions import themselves."""
    found: set[str] = set()
    for function in functions:
        for part in ast.walk(definition(function) or ast.Pass()):
            if isinstance(part, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in part.names}
            elif isinstance(part, ast.ImportFrom) and part.module and not part.level:
                found.add(part.module.partition(".")[0])
    return frozenset(found)
