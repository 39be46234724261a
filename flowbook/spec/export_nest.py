"""How the free graph of step cells nests into what a class can say: one after the other, side by side, once for each item, or only if.

A class has a first and a last step, and each split is closed by a join. So the cells of one fan-out level are a partial order, and
that is taken apart: what is not connected stands side by side; what all else comes before or after stands in a row. An order that
is neither (it holds an N: a before c and d, b before d only) becomes a row, and `Row.lined` says so.

What may be skipped, because of --when or because only skipped steps make what it reads, stands in a `Maybe`, with what is skipped
together with it. Pure; raises DefinitionError for what has no place in a class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flowbook.errors import DefinitionError, Finding
from flowbook.spec.body import VISIBLE_KINDS, Body
from flowbook.spec.flow import Input, Step


@dataclass(frozen=True)
class Cell:
    """A step and the texts that it was linked from: its own body, as read, and the expressions of --foreach and --when."""

    step: Step
    body: Body
    foreach: Body | None = None
    when: Body | None = None

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def base(self) -> tuple[str, ...]:
        return self.step.base

    @property
    def where(self) -> str:
        return f"step {self.name} ({self.step.label})" if self.step.label else f"step {self.name}"

    @property
    def artifacts(self) -> tuple[str, ...]:
        """What it saves: data, functions and classes, but no modules."""
        return tuple(name for name in self.step.saves if self.body.others.get(name) != "import" and name != self.step.options.catch)

    @property
    def reads(self) -> tuple[Input, ...]:
        return (*self.step.inputs, *self.step.plan_inputs)

    def kind(self, name: str) -> str:
        """ "import", "function", "class", or "" for data."""
        found = self.body.others.get(name, "")
        return found if found in VISIBLE_KINDS else ""

    def surely_makes(self, name: str) -> bool:
        """Whether the name is bound whenever the body ends normally, --when left aside."""
        foreach = self.step.options.foreach
        if foreach is not None and name in foreach.names:
            return True
        if self.step.options.catch is not None:
            return name == self.step.options.catch
        return self.body.makes.get(name, False) or name in self.body.certain_others or name in self.step.certain


@dataclass(frozen=True)
class One:
    cell: str


@dataclass(frozen=True)
class Fan:
    """The steps that run per item of the foreach step `cell`, itself first."""

    cell: str
    inner: Row


@dataclass(frozen=True)
class Side:
    branches: tuple[Row, ...]


@dataclass(frozen=True)
class Maybe:
    """What runs only if `cell` does: `lacks` are names that must be there, `when` its --when, of the steps `ran` one must have run."""

    cell: str
    lacks: tuple[str, ...]
    when: str | None
    ran: tuple[str, ...]
    inner: Row


Part = One | Fan | Side | Maybe


@dataclass(frozen=True)
class Row:
    parts: tuple[Part, ...]
    lined: tuple[tuple[str, ...], ...] = ()  # cells that are in a row only because a class cannot say it otherwise


def cells_of(part: Part | Row) -> Iterator[str]:
    """Names of all cells in a part, in the order in which they will be written."""
    if isinstance(part, One):
        yield part.cell
    elif isinstance(part, Fan | Maybe):
        yield from cells_of(part.inner)
    else:
        for inner in part.branches if isinstance(part, Side) else part.parts:
            yield from cells_of(inner)


def nest(cells: Sequence[Cell]) -> Row:
    """The structure of a flow. Raises DefinitionError."""
    known = {cell.name: cell for cell in cells}
    return _Conditions(known).row(_Order(cells).level(()), frozenset())


# ---- the order ------------------------------------------------------------------------------------------------------------


class _Order:
    """Who comes before whom."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = {cell.name: cell for cell in cells}
        self.position = {cell.name: i for i, cell in enumerate(cells)}
        self.edges = {(a, b) for a, b in self._edges() if a in self.cells and b in self.cells and a != b}

    def _edges(self) -> Iterator[tuple[str, str]]:
        for name, cell in self.cells.items():
            for given in cell.reads:
                makers = sorted((m for m in given.makers if m in self.position), key=lambda m: self.position[m])
                yield from ((maker, name) for maker in makers)
                yield from itertools.pairwise(makers)  # the later one has the last word
            for other in (*cell.step.options.join, *cell.step.options.after):
                yield other, name

    def level(self, base: tuple[str, ...]) -> Row:
        """The row of all that runs in the scope `base`; deeper fan-outs are one node each."""
        depth = len(base)
        nodes: dict[str, list[str]] = {}
        for name, cell in self.cells.items():
            scope = cell.step.scope
            if scope[:depth] == base and not (depth and name == base[-1]):
                nodes.setdefault(name if len(scope) == depth else scope[depth], []).append(name)
        home = {cell: node for node, inside in nodes.items() for cell in inside}
        before: dict[str, set[str]] = {node: set() for node in nodes}
        for a, b in self.edges:
            if a in home and b in home and home[a] != home[b]:
                before[home[b]].add(home[a])
        self._close(before, nodes)
        row = _take_apart(sorted(nodes, key=lambda n: self.position[n]), before)
        deeper = {node: Fan(node, self._inside((*base, node))) for node in nodes if self._fans(node, depth)}
        return _with_fans(row, deeper)

    def _fans(self, node: str, depth: int) -> bool:
        return len(self.cells[node].step.scope) > depth

    def _inside(self, scope: tuple[str, ...]) -> Row:
        row = self.level(scope)
        return Row((One(scope[-1]), *row.parts), row.lined)

    def _close(self, before: dict[str, set[str]], nodes: Mapping[str, list[str]]) -> None:
        """Makes `before` transitive. Raises DefinitionError for a circle, which a fan-out that stands around other steps can make."""
        for middle in before:
            for earlier in before.values():
                if middle in earlier:
                    earlier |= before[middle]
        for node, earlier in before.items():
            if node in earlier:
                cell = self.cells[node]
                inside = ", ".join(nodes[node][1:])
                raise DefinitionError(
                    Finding(
                        cell.where,
                        f"a class runs a fan-out as a whole, and other steps come between {node} and {inside}",
                        "Move these steps before the fan-out or behind its join.",
                    )
                )


def _take_apart(nodes: Sequence[str], before: Mapping[str, set[str]]) -> Row:
    """Series and parallel; `nodes` are in the order of the notebook."""
    if len(nodes) == 1:
        return Row((One(nodes[0]),))
    if not nodes:
        return Row(())

    def ordered(a: str, b: str) -> bool:
        return a in before[b] or b in before[a]

    apart = _components(nodes, ordered)
    if len(apart) > 1:
        return Row((Side(tuple(_take_apart(part, before) for part in apart)),))
    series = _components(nodes, lambda a, b: not ordered(a, b))
    if len(series) == 1:
        line = _in_line(nodes, before)
        return Row(tuple(One(node) for node in line), (tuple(line),))
    series.sort(key=lambda part: len(before[part[0]] - set(part)))
    rows = [_take_apart(part, before) for part in series]
    return Row(tuple(p for row in rows for p in row.parts), tuple(group for row in rows for group in row.lined))


def _components(nodes: Sequence[str], connected: object) -> list[list[str]]:
    assert callable(connected)
    left, found = list(nodes), []
    while left:
        group, queue = [left.pop(0)], [0]
        while queue:
            one = group[queue.pop()]
            for other in [other for other in left if connected(one, other)]:
                left.remove(other)
                group.append(other)
                queue.append(len(group) - 1)
        found.append([node for node in nodes if node in group])
    return found


def _in_line(nodes: Iterable[str], before: Mapping[str, set[str]]) -> list[str]:
    left, line = list(nodes), []
    while left:
        ready = next(node for node in left if not before[node] & set(left))
        left.remove(ready)
        line.append(ready)
    return line


def _with_fans(row: Row, fans: Mapping[str, Fan]) -> Row:
    def put(part: Part) -> Part:
        if isinstance(part, One):
            return fans.get(part.cell, part)
        return Side(tuple(_with_fans(branch, fans) for branch in part.branches)) if isinstance(part, Side) else part

    return Row(tuple(put(part) for part in row.parts), row.lined)


# ---- what may be skipped --------------------------------------------------------------------------------------------------


class _Conditions:
    """Puts what may be skipped into `Maybe`s. `sure`: the cells that have run whenever this place is reached."""

    def __init__(self, cells: Mapping[str, Cell]) -> None:
        self.cells = cells

    def row(self, row: Row, sure: frozenset[str]) -> Row:
        parts, left = [], list(row.parts)
        while left:
            part, sure = self._part(left.pop(0), left, sure)
            parts.append(part)
        return Row(tuple(parts), row.lined)

    def _part(self, part: Part, left: list[Part], sure: frozenset[str]) -> tuple[Part, frozenset[str]]:
        """The part with its conditions, and all that is sure after it; what it takes along is removed from `left`."""
        if isinstance(part, Side):
            rows = tuple(self.row(branch, sure) for branch in part.branches)
            return Side(rows), sure.union(*(_surely(row) for row in rows))
        assert isinstance(part, One | Fan)
        cell = self.cells[part.cell]
        lacks, when, join = self._lacks(cell, sure), cell.step.options.when, cell.step.options.join
        ran = () if sure & set(join) else join
        if not lacks and when is None and not ran:
            done = self._inner(part, sure)
            return done, sure | _surely(done)
        group, followers = set(cells_of(part)), []
        while left and self._implied(left[0], group):
            follower = left.pop(0)
            group |= set(cells_of(follower))
            followers.append(follower)
        first = self._inner(part, sure)
        rest = self.row(Row(tuple(followers)), sure | _surely(first))
        return Maybe(part.cell, lacks, when, ran, Row((first, *rest.parts))), sure

    def _inner(self, part: One | Fan, sure: frozenset[str]) -> Part:
        if isinstance(part, One):
            return part
        rest = self.row(Row(part.inner.parts[1:]), sure | {part.cell})
        return Fan(part.cell, Row((One(part.cell), *rest.parts), part.inner.lined))

    def _lacks(self, cell: Cell, sure: frozenset[str]) -> tuple[str, ...]:
        """Names that the step needs and that may not be there."""
        found = [
            given.name for given in cell.reads if given.required and given.makers and not given.captured and not self._there(given, sure)
        ]
        return tuple(dict.fromkeys(found))

    def _there(self, given: Input, sure: frozenset[str]) -> bool:
        return any(maker in sure and self.cells[maker].surely_makes(given.name) for maker in given.makers)

    def _implied(self, part: Part, group: set[str]) -> bool:
        """Whether all steps of a part are skipped if the group is."""
        if isinstance(part, Side):
            return all(self._implied(One(name), group) for name in cells_of(part))
        assert isinstance(part, One | Fan)
        cell = self.cells[part.cell]
        join = cell.step.options.join
        needs = any(given.required and given.makers and not given.captured and set(given.makers) <= group for given in cell.reads)
        return needs or (bool(join) and set(join) <= group)


def _surely(part: Part | Row) -> frozenset[str]:
    """The cells of a part that run whenever it is reached."""
    if isinstance(part, One):
        return frozenset({part.cell})
    if isinstance(part, Maybe):
        return frozenset()
    if isinstance(part, Fan):
        return _surely(part.inner)
    return frozenset().union(*(_surely(inner) for inner in (part.branches if isinstance(part, Side) else part.parts)))
