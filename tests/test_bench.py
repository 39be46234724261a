"""The benchmarks' own arithmetic: ratios, intervals, exponents, what a contest does when somebody fails, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.environments import PEERS, environment_folder, version_of
from benchmarks.measure import (
    Contest,
    Contestant,
    Fact,
    Sample,
    Section,
    Settings,
    Unavailable,
    amount,
    exponent,
    interval,
    quantile,
    ratios,
    report,
    rows,
    table,
)
from benchmarks.run import NAMES, RESULTS, read_arguments

ROOT = Path(__file__).parent.parent


# ---- statistics ---------------------------------------------------------------------------------------------------------


def test_a_ratio_above_one_says_that_flowbook_is_better() -> None:
    assert ratios([10, 20], [5, 5], more_is_better=True) == [2, 4]
    assert ratios([1, 2], [10, 10], more_is_better=False) == [10, 5]


@pytest.mark.parametrize(
    ("own", "other"),
    [([], []), ([1], []), ([1, 2], [1]), ([0], [1]), ([1], [0]), ([-1], [1]), ([float("nan")], [1]), ([1], [float("inf")])],
)
def test_rounds_that_cannot_be_compared_are_refused(own: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError):
        ratios(own, other, more_is_better=True)


def test_an_interval_holds_the_median_and_is_the_same_each_time() -> None:
    values = [3.0, 1.0, 2.0, 5.0, 4.0, 2.5, 3.5]
    low, high = interval(values)

    assert 1 <= low < 3 < high <= 5
    assert interval(values) == (low, high)
    assert interval([2.0]) == (2.0, 2.0)
    assert interval([2.0] * 7) == (2.0, 2.0)


def test_a_wider_share_gives_a_wider_interval() -> None:
    values = [float(v) for v in range(1, 20)]
    narrow, wide = interval(values, share=0.5), interval(values, share=0.99)

    assert wide[0] < narrow[0] and narrow[1] < wide[1]


@pytest.mark.parametrize(("values", "share"), [([], 0.95), ([1.0], 0), ([1.0], 1), ([1.0], 2)])
def test_an_interval_of_nothing_or_of_a_wrong_share_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError):
        interval(values, share=share)


def test_quantiles_lie_between_neighbours_in_proportion() -> None:
    assert quantile([4, 1, 3, 2], 0) == 1 and quantile([4, 1, 3, 2], 1) == 4
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile(range(1001), 0.999) == 999
    assert quantile([7], 0.3) == 7
    for values, q in (([], 0.5), ([1], -0.1), ([1], 1.1)):
        with pytest.raises(ValueError):
            quantile(values, q)


def test_the_exponent_of_linear_time_is_one_and_of_quadratic_time_two() -> None:
    sizes = [1000, 2000, 5000, 10_000]

    assert exponent(sizes, [0.003 * n for n in sizes]) == pytest.approx(1)
    assert exponent(sizes, [1e-6 * n**2 for n in sizes]) == pytest.approx(2)
    for wrong in (([], []), ([1], [1]), ([1, 1], [1, 2]), ([1, 2], [1]), ([1, 2], [0, 1]), ([0, 2], [1, 1])):
        with pytest.raises(ValueError):
            exponent(*wrong)


def test_amounts_have_three_digits_that_count() -> None:
    assert [amount(v) for v in (0, 0.0123, 1.5, 12.34, 123.4, 12345.6, -0.5)] == ["0", "0.0123", "1.50", "12.3", "123", "12,346", "-0.500"]
    assert amount(float("inf")) == "inf"


# ---- contests -----------------------------------------------------------------------------------------------------------


def contest(*measures: object, more_is_better: bool = True) -> Contest:
    """Contestants a, b, … who say the next of their values, or fail with it."""

    def contestant(name: str, values: list[object]) -> Contestant:
        def measure() -> Sample:
            order.append(name)
            value = values.pop(0)
            if isinstance(value, Exception):
                raise value
            assert isinstance(value, float | int)
            return Sample(value, 0.5)

        return Contestant(name, "nothing", measure)

    order: list[str] = []
    found = Contest("work", "/s", more_is_better, [contestant(name, list(m)) for name, m in zip("abc", measures, strict=False)])  # type: ignore[call-overload]
    found.order = order  # type: ignore[attr-defined]
    return found


def test_contestants_take_turns_and_the_first_round_is_thrown_away() -> None:
    held = contest([100, 1, 2], [200, 3, 4]).hold(2)

    assert held.order == list("ababab")  # type: ignore[attr-defined]
    assert [[s.value for s in held.samples[name]] for name in "ab"] == [[1, 2], [3, 4]]


def test_a_peer_that_fails_is_left_out_and_the_table_says_why() -> None:
    held = contest([1, 1, 1], [2, Unavailable("no wheel for this machine")], [4, 4, 4]).hold(2)

    assert [line[-1] for line in rows(held)] == ["", "no wheel for this machine", "few rounds"]
    assert rows(held)[2][-2] == "0.250"
    assert held.order == list("abcabcac")  # type: ignore[attr-defined]


def test_flowbook_itself_may_not_fail() -> None:
    with pytest.raises(Unavailable):
        contest([Unavailable("broken")], [1]).hold(1)


def test_a_report_is_a_markdown_table_with_ratios_and_intervals() -> None:
    held = contest([9, 10, 10, 10, 10, 10], [5, 5, 5, 5, 5, 5]).hold(5)
    text = report([Section("work", [held], [Fact("how much", "1 MB")], ["a note"])])

    assert "## work" in text and "- a note" in text
    assert re.search(r"\| a +\| nothing +\| 10.0 /s \| 0.500 s \| 1 +\| +\|", text)
    assert re.search(r"\| b +\| nothing +\| 5.00 /s \| 0.500 s \| 2.00 +\| 2.00 – 2.00 \|", text)
    assert re.search(r"\| how much \| 1 MB +\|", text)
    assert len({len(line) for line in table([["x", "yyy"], ["longer", ""]], ["", "h"])}) == 1


def test_scale_makes_counts_smaller_but_not_too_small() -> None:
    assert Settings(scale=0.1).scaled(1000) == 100
    assert Settings(scale=0.001).scaled(1000, least=10) == 10
    assert Settings().scaled(1000) == 1000


# ---- the command and its peers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["foreach", "nothing"],
        ["--rounds", "0"],
        ["--rounds", "x"],
        ["--scale", "0"],
        ["--scale", "2"],
        ["--scale", "nan"],
        ["--wrong"],
        ["foreach", "--write"],
        ["--write", "--scale", "0.5"],
        ["--write", "--no-peers"],
    ],
)
def test_wrong_arguments_are_refused_in_a_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_arguments(arguments)

    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_right_arguments_are_understood() -> None:
    assert read_arguments([]).rounds == 7
    given = read_arguments(["foreach", "stall", "--rounds", "3", "--scale", "0.1", "--no-peers"])
    assert (given.names, given.rounds, given.scale, given.no_peers) == (["foreach", "stall"], 3, 0.1, True)


def test_every_benchmark_is_a_module_and_explained() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()

    for name in NAMES:
        assert (ROOT / "benchmarks" / f"{name}.py").exists()
        assert f"`{name}`" in page
    assert RESULTS.name in page


def test_pins_are_exact_and_name_no_registry() -> None:
    files = list(PEERS.glob("*.txt"))
    lines = [line for path in files for line in path.read_text().splitlines()]

    assert files
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[^ ]+( ; .+)?", line)] == []


def test_an_environment_is_named_by_its_pins_and_its_python() -> None:
    home = Path("/cache")
    first = environment_folder("a==1\n", "/bin/python 3.11", home)

    assert first.parent == home / "flowbook-bench"
    assert first == environment_folder("a==1\n", "/bin/python 3.11", home)
    assert len({first, environment_folder("a==2\n", "/bin/python 3.11", home), environment_folder("a==1\n", "/bin/python 3.12", home)}) == 3


def test_the_version_of_a_peer_is_that_of_its_pin() -> None:
    assert re.fullmatch(r"[0-9.]+", version_of("metaflow", "metaflow"))
    with pytest.raises(KeyError):
        version_of("metaflow", "nothing")
