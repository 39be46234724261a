"""How measurements are held and reported: interleaved rounds, ratios, intervals. Starts no process, touches no file.

Machines are shared and change under a measurement. So contestants take turns (A B C A B C …), the first round is thrown away,
and a contestant is compared with flowbook within each round; the report is the median of these ratios and a bootstrap
interval around it. A ratio above 1 always says that flowbook is better, be it a rate or a time.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

REPEATS = 2000  # of the bootstrap
FEWEST = 5  # rounds for an interval that means something


@dataclass(frozen=True)
class Settings:
    """What a benchmark is told. `scale` makes every count and size smaller, to try the tool; real figures have 1."""

    rounds: int = 7
    scale: float = 1.0
    peers: bool = True

    def scaled(self, amount: int, least: int = 1) -> int:
        return max(least, round(amount * self.scale))


@dataclass(frozen=True)
class Sample:
    """One measurement in the contest's unit, and the CPU seconds of all processes that worked for it."""

    value: float
    cpu_s: float | None = None


@dataclass(frozen=True)
class Contestant:
    """Somebody who does the work. `persists`: what survives the death of all its processes."""

    name: str
    persists: str
    measure: Callable[[], Sample]


class Unavailable(Exception):
    """A contestant cannot take part; the message says why."""


@dataclass
class Contest:
    """The same work done by several; the first contestant is flowbook, with which the others are compared."""

    title: str
    unit: str
    more_is_better: bool
    contestants: list[Contestant]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # name → why

    def hold(self, rounds: int) -> Contest:
        """Measure `rounds` rounds after one that is thrown away. A peer that fails is left out; flowbook may not fail."""
        self.samples = {each.name: [] for each in self.contestants}
        for number in range(rounds + 1):
            for each in self.contestants:
                if each.name in self.absent:
                    continue
                try:
                    sample = each.measure()
                except Unavailable as error:
                    if each is self.contestants[0]:
                        raise
                    self.absent[each.name] = str(error)
                    continue
                if number:
                    self.samples[each.name].append(sample)
                    print(f"  round {number}: {each.name}: {amount(sample.value)} {self.unit}", file=sys.stderr, flush=True)
        return self


@dataclass(frozen=True)
class Fact:
    """A figure of flowbook alone, or of the machine."""

    what: str
    figure: str


@dataclass
class Section:
    """What one benchmark found. `notes` say how to read it."""

    title: str
    contests: list[Contest] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# ---- statistics ---------------------------------------------------------------------------------------------------------


def ratios(own: Sequence[float], other: Sequence[float], more_is_better: bool) -> list[float]:
    """How many times better `own` was in each round. Raises ValueError for rounds that do not match or a value that is not above 0."""
    if not own or len(own) != len(other):
        raise ValueError(f"{len(own)} rounds cannot be compared with {len(other)}")
    if not all(math.isfinite(value) and value > 0 for value in (*own, *other)):
        raise ValueError("only values above 0 have a ratio")
    return [a / b if more_is_better else b / a for a, b in zip(own, other, strict=True)]


def interval(values: Sequence[float], seed: int = 0, share: float = 0.95) -> tuple[float, float]:
    """The bootstrap interval of the median that holds `share` of it. Raises ValueError without values."""
    if not values:
        raise ValueError("no values, no interval")
    if not 0 < share < 1:
        raise ValueError(f"a share is between 0 and 1, not {share}")
    draw = random.Random(seed)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(REPEATS))
    return quantile(medians, (1 - share) / 2), quantile(medians, (1 + share) / 2)


def quantile(values: Iterable[float], q: float) -> float:
    """The value below which a part `q` of them lies, between two neighbours in proportion. Raises ValueError."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values, no quantile")
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is between 0 and 1, not {q}")
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(size), by least squares: 1 is linear. Raises ValueError."""
    if len(sizes) != len(seconds) or len(set(sizes)) < 2:
        raise ValueError("an exponent needs two sizes or more, and a time for each")
    if min(*sizes, *seconds) <= 0:
        raise ValueError("only values above 0 have a logarithm")
    return statistics.linear_regression([math.log(n) for n in sizes], [math.log(s) for s in seconds]).slope


# ---- the report ---------------------------------------------------------------------------------------------------------


def amount(value: float) -> str:
    """A number with three digits that count.

    >>> [amount(v) for v in (0, 0.0123, 1.5, 12.34, 123.4, 12345.6)]
    ['0', '0.0123', '1.50', '12.3', '123', '12,346']
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def rows(contest: Contest) -> list[list[str]]:
    """A line for each contestant: name, persists, median, CPU seconds, ratio, interval."""
    own = [sample.value for sample in contest.samples[contest.contestants[0].name]]
    found = []
    for each in contest.contestants:
        if each.name in contest.absent:
            found.append([each.name, each.persists, "not measured", "", "", contest.absent[each.name]])
            continue
        samples = contest.samples[each.name]
        values = [sample.value for sample in samples]
        spent = [sample.cpu_s for sample in samples if sample.cpu_s is not None]
        line = [each.name, each.persists, f"{amount(statistics.median(values))} {contest.unit}"]
        line.append(f"{amount(statistics.median(spent))} s" if spent else "")
        if each is contest.contestants[0]:
            found.append([*line, "1", ""])
            continue
        better = ratios(own, values, contest.more_is_better)
        low, high = interval(better)
        found.append(
            [*line, amount(statistics.median(better)), f"{amount(low)} – {amount(high)}" if len(better) >= FEWEST else "few rounds"]
        )
    return found


HEAD = ["", "persists", "median", "CPU", "flowbook is better by", "95 %"]


def table(lines: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> list[str]:
    """A Markdown table whose columns stand under each other in a terminal, too."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    ruled = [head, ["-" * width for width in widths], *lines]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in ruled]


def report(sections: Iterable[Section]) -> str:
    """All sections as Markdown."""
    lines: list[str] = []
    for section in sections:
        lines += [f"## {section.title}", ""]
        for contest in section.contests:
            lines += [f"**{contest.title}**", "", *table(rows(contest)), ""]
        if section.facts:
            lines += [*table([[fact.what, fact.figure] for fact in section.facts], ["", "figure"]), ""]
        lines += [f"- {note}" for note in section.notes] + ([""] if section.notes else [])
    return "\n".join(lines)
