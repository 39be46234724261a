"""What a status says of cache, cost and size, drawn from events alone; and that drawing costs the same however many tasks there are."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flowbook.engine import events
from flowbook.engine.events import Event, Task
from flowbook.kernel import display
from flowbook.kernel.display import ago_text, largest, memory_text, outputs, outputs_html, outputs_text, status_html, status_text
from flowbook.kernel.engine import RunView
from flowbook.kernel.runs import Run
from flowbook.spec.flow import Retry
from tests.kernel.conftest import Notebook
from tests.stories.test_state import flow, step

NOW = 1_000_000.0
HOUR = 3600.0


def run_of(*told: Event, count: int = 20) -> Run:
    """A run of start, a fan-out work, and join, after these events; `count` items."""
    spec = flow(step("start"), step("work", "start_out:start", foreach="start_out", host="start"), step("join", join=("work",)), run="13")
    view = RunView(spec)
    start = Task("start")
    first = [events.run_started(NOW), events.launched(start, NOW), events.succeeded(start, NOW + 1, plans={"work": {"count": count}})]
    for event in (*first, *told):
        view.apply(event)
    return Run(spec, view)


def row(run: Run, name: str, now: float = NOW + 100) -> str:
    return next(line for line in status_text(run, now).splitlines() if line[4:].startswith(f"{name} "))


def cached(i: int, run: str = "12", ago: float | None = 3 * HOUR) -> Event:
    return events.reused(Task("work", (i,)), NOW + 1, run=run, index=(i,), made_at=None if ago is None else NOW + 100 - ago)


def ran(i: int, why: str = "", **facts: Any) -> list[Event]:
    task = Task("work", (i,))
    return [events.launched(task, NOW + 2, why=why), events.succeeded(task, NOW + 5, **facts)]


# ---- the cache --------------------------------------------------------------------------------------------------------------


def test_a_fan_out_says_how_much_was_cached_how_old_it_is_and_from_which_run() -> None:
    run = run_of(*(cached(i) for i in range(17)), *ran(17, "its item changed since run 12"))

    assert row(run, "work").endswith("17 of 20 cached, 3 h ago, from run 12 · ran: its item changed since run 12")


def test_a_single_step_says_cached() -> None:
    run = run_of(*(cached(i) for i in range(2)), count=2)
    run.view.apply(events.reused(Task("join"), NOW + 3, run="9", index=(), made_at=NOW - 5 * 86400))

    assert row(run, "join").endswith("cached, 5 days ago, from run 9")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([("12", 3 * HOUR), ("11", 3 * HOUR)], "2 of 20 cached, 3 h ago, from runs 12 and 11"),
        ([("12", 3 * HOUR), ("11", 50 * HOUR), ("10", 60 * HOUR)], "3 of 20 cached, 3 h to 2 days ago, from 3 runs"),
        ([("12", 10), ("12", HOUR)], "2 of 20 cached, up to 1 h ago, from run 12"),
        ([("12", None)], "1 of 20 cached, from run 12"),
        ([("12", -50)], "1 of 20 cached, just now, from run 12"),
    ],
)
def test_several_origins_and_ages_are_said_shortly(told: list[tuple[str, float | None]], said: str) -> None:
    run = run_of(*(cached(i, origin, ago) for i, (origin, ago) in enumerate(told)))

    assert row(run, "work").endswith(said)


def test_the_age_of_a_cached_result_stands_still_when_the_run_has_ended() -> None:
    run = run_of(*(cached(i) for i in range(2)), count=2)
    run.view.apply(events.reused(Task("join"), NOW + 3, run="9", index=(), made_at=NOW - HOUR))
    run.view.apply(events.run_ended(NOW + 4, "succeeded"))

    assert row(run, "join", NOW + 100) == row(run, "join", NOW + 10 * 86400)


def test_reasons_are_said_once_or_counted() -> None:
    one = run_of(*(event for i in range(3) for event in ran(i, "code changed since run 12")))
    assert row(one, "work").endswith("  ran: code changed since run 12")

    some = run_of(*ran(0, "code changed since run 12"), *ran(1))
    assert row(some, "work").endswith("1 ran: code changed since run 12")

    many = run_of(*(event for i, why in enumerate("a a a b b c d".split()) for event in ran(i, why)))
    assert row(many, "work").endswith("3 ran: a; 2 ran: b; 2 other reasons")

    life = "its last result is of an earlier kernel, and nothing it reads could tell that it still holds, so it runs once in each kernel"
    assert row(run_of(*ran(0, life)), "work").endswith(
        "its last result is of an earlier kernel, and nothing it reads could tell that it still holds"
    )


def test_a_second_attempt_gives_no_second_reason() -> None:
    spec = flow(step("a", retry=Retry(times=2)), run="2")
    view, task = RunView(spec), Task("a")
    for event in (
        events.run_started(NOW),
        events.launched(task, NOW, 0, why="code changed since run 1"),
        events.failed(task, NOW + 1, 0, error={"reason": "error"}),
        events.launched(task, NOW + 121, 1),
        events.succeeded(task, NOW + 130, 1, peak_mb=50, cpu_s=1.0),
    ):
        view.apply(event)

    assert row(Run(spec, view), "a").endswith("2 min 10 s  ran: code changed since run 1 · attempt 2 · peak 50 MB · cpu 1.0 s")


# ---- cost -------------------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_step_is_its_hungriest_task_and_the_cpu_of_all() -> None:
    run = run_of(*ran(0, peak_mb=120.0, cpu_s=20.0), *ran(1, peak_mb=1234.0, cpu_s=14.0), *ran(2), *ran(3, peak_mb=3.0, cpu_s=0.0))

    assert row(run, "work").endswith("peak 1.2 GB · cpu 34 s")


def test_what_is_next_to_nothing_is_not_said() -> None:
    assert "cpu" not in row(run_of(*ran(0, peak_mb=17.0, cpu_s=0.01)), "work")
    assert "peak" not in row(run_of(*ran(0)), "work")


def test_times_go_on_while_a_task_runs_and_stop_after() -> None:
    task = Task("work", (0,))
    run = run_of(events.launched(task, NOW + 10))
    assert "1 min 30 s" in row(run, "work", NOW + 100)

    run.view.apply(events.succeeded(task, NOW + 30))
    assert "20 s" in row(run, "work", NOW + 1000)


def test_words_for_age_and_memory() -> None:
    assert [ago_text(s) for s in (-5, 0, 59, 60, 3599, 3600, 47 * HOUR, 48 * HOUR)] == [
        "just now",
        "just now",
        "just now",
        "1 min ago",
        "60 min ago",
        "1 h ago",
        "47 h ago",
        "2 days ago",
    ]
    assert [memory_text(mb) for mb in (0.4, 999, 1000, 64_000)] == ["0 MB", "999 MB", "1.0 GB", "64.0 GB"]


def test_warnings_are_shown_up_to_a_limit() -> None:
    run = run_of(*(event for i in range(12) for event in ran(i, warnings=[f"`x` is <{i}>"])))

    assert len(display.all_warnings(run)) == 11 and display.all_warnings(run)[-1] == "…"
    assert "work[0]: `x` is &lt;0&gt;" in status_html(run)


def test_what_a_run_says_of_itself_is_escaped() -> None:
    page = status_html(run_of(*ran(0, "<script>alert(1)</script>")), NOW, note="<b>")

    assert "<script>" not in page and "<b>" not in page


# ---- large artifacts --------------------------------------------------------------------------------------------------------


def test_large_artifacts_come_with_an_option_to_leave_them_out() -> None:
    sizes = {("train", "model"): 1_200_000_000, ("train", "score"): 8, ("load", "x"): 200_000_000, ("small", "y"): 10}

    assert largest(sizes, 100_000_000) == (
        "\nlargest of train: model 1.2 GB; to keep only the rest: --out score\nlargest of load: x 200 MB; to keep only the rest: --out x"
    )
    assert largest({}) == ""


def test_a_large_artifact_is_told_at_the_end_of_a_run(book: Notebook) -> None:
    book.ok("%%flowstep load\nbig = bytes(110_000_000)\nsmall = 1")
    book.ok("%%flowstep use\nn = len(big)")

    assert "largest of load: big 110 MB; to keep only the rest: --out small" in book.ok("%flow run").text
    assert "--out small" in book.ok("%flow artifacts").text


# ---- width ------------------------------------------------------------------------------------------------------------------


class Untouchable(dict[Any, Any]):
    """Tasks that may be looked up, but not gone through."""

    def _refuse(self, *_: Any) -> Any:
        raise AssertionError("drawing a status goes through all tasks")

    __iter__ = items = values = keys = _refuse


def test_drawing_a_status_does_not_go_through_the_tasks() -> None:
    run = run_of(*(event for i in range(19) for event in ran(i, warnings=["w"])))
    before = status_text(run, NOW), status_html(run, NOW)
    run.view.state.tasks = Untouchable(run.view.state.tasks)

    assert (status_text(run, NOW), status_html(run, NOW)) == before


def test_of_a_wide_step_the_output_of_the_first_tasks_is_shown() -> None:
    run = run_of(count=500)
    for i in reversed(range(500)):
        run.view.hint({"say": "output", "step": "work", "index": [i], "text": f"said {i}\n", "size": 10})
    run.view.hint({"say": "output", "step": "start", "index": [], "text": "first\n", "size": 6})

    assert [name for name, _ in outputs(run)] == ["start", *(f"work[{i}]" for i in range(20)), "work"]
    assert outputs_text(run).endswith("said 19\n── more tasks of work: %flow logs work")
    assert len(re.findall("<details", outputs_html(run))) == 21 and "more tasks of work" in outputs_html(run)
