"""Stories: logs as tables, and what a run may do after each. No clock, no process, no store."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowbook.engine import events
from flowbook.engine.admission import Capacity, admit, capped
from flowbook.engine.events import Event, Task
from flowbook.engine.state import (
    ENDED,
    TRANSITIONS,
    Cancel,
    Command,
    Finish,
    InvalidTransition,
    Launch,
    RunState,
    Skip,
    Wake,
    decide,
    fold,
)
from flowbook.spec.flow import Foreach, Input, Options, Resources, Retry, Spec, Step
from flowbook.spec.options import min_ok_count
from flowbook.spec.retries import wait_s

# ---- words ------------------------------------------------------------------------------------------------------------


def step(name: str, reads: str = "", scope: str = "", foreach: str = "", plan_reads: str = "", **options: Any) -> Step:
    """`reads` is "x:maker1,maker2 y?:maker": ? not required, = captured too. A step makes the name "NAME_out" and others given in saves."""
    saves = options.pop("saves", (f"{name}_out",))
    host, key = options.pop("host", None), options.pop("key", "")
    if foreach:
        options["foreach"] = Foreach("i", foreach, ("i",))
        scope = f"{scope} {name}"
    return Step(
        name,
        "",
        f"<{name}>",
        f"Cell {name}",
        Options(**options),
        tuple(scope.split()),
        inputs=inputs(reads),
        plan_inputs=inputs(plan_reads),
        host=host,
        saves=saves,
        key=key,
    )


def inputs(text: str) -> tuple[Input, ...]:
    found = []
    for word in text.split():
        name, _, makers = word.partition(":")
        found.append(Input(name.strip("?="), tuple(filter(None, makers.split(","))), captured="=" in name, required="?" not in name))
    return tuple(found)


def flow(*steps: Step, **fields: Any) -> Spec:
    hosted = {s.name: tuple(o.name for o in steps if o.host == s.name) for s in steps}
    linked = tuple(Step(**{**{f: getattr(s, f) for f in s.__dataclass_fields__}, "hosted": hosted[s.name]}) for s in steps)
    return Spec("demo", fields.pop("run", "2"), linked, **fields)


WORD = re.compile(r"(\w+)(?:\[([\d,]*)\])?(\.plan)? (.*?)(?: @(\d+))?\Z")


def story(spec: Spec, *lines: str) -> RunState:
    """A line: TASK ok | launched | failed | oom … | skipped | stopped, with "-name" for a name not made and "STEP=3", "STEP=no" for plans.

    "~name=KEY" is the key of an artifact, "vanished" an attempt that flowbook lost. A task that succeeds or fails is launched first if it was not. "stop", "stop train", "stop train[1]" are requests.
    """
    state = RunState(spec)
    state.apply(events.run_started(0))
    for line in lines:
        tell(state, line)
    return state


def tell(state: RunState, line: str) -> None:
    if line.startswith("stop"):
        wanted = re.fullmatch(r"stop(?: (\w+)(?:\[([\d,]+)\])?)?", line)
        assert wanted, line
        index = [int(i) for i in wanted[2].split(",")] if wanted[2] else None
        state.apply(events.stop_requested(0, wanted[1], index))
        return
    found = WORD.match(line)
    assert found, line
    task = Task(found[1], tuple(int(i) for i in (found[2] or "").split(",") if i), "plan" if found[3] else "body")
    what, *facts = found[4].split()
    at = float(found[5] or 0)
    if what not in ("launched", "skipped", "stopped", "reused") and state.tasks[task].state != "launched":
        state.apply(events.launched(task, at, state.tasks[task].attempts))
    missing = [fact[1:] for fact in facts if fact.startswith("-")]
    keys = dict(fact[1:].split("=") for fact in facts if fact.startswith("~"))
    plans = dict(plan(fact) for fact in facts if "=" in fact and not fact.startswith("~"))
    attempt = state.tasks[task].attempt if task in state.tasks else 0
    if what == "launched":
        state.apply(events.launched(task, at, state.tasks[task].attempts))
    elif what in ("ok", "caught"):
        state.apply(events.succeeded(task, at, attempt, missing=missing, plans=plans, keys=keys, caught=what == "caught"))
    elif what == "reused":
        state.apply(events.reused(task, at, run="1", index=task.index, made_at=1.5, missing=missing, plans=plans, keys=keys))
    elif what == "vanished":
        state.apply(events.lost(task, at, attempt, "its fork server died"))
    elif what == "skipped":
        state.apply(events.skipped(task, at, "told so"))
    elif what == "stopped":
        state.apply(events.stopped(task, at))
    else:
        state.apply(events.failed(task, at, attempt, error={"reason": what, "message": what}))


def plan(fact: str) -> tuple[str, dict[str, Any]]:
    name, _, value = fact.partition("=")
    if value in ("yes", "no"):
        return name, {"when": value == "yes"}
    if value == "error":
        return name, {"error": {"reason": "error", "message": "bad expression"}}
    count, _, ids = value.partition("/")  # "3/abc": the ids begin with a, b and c
    found = {"count": int(count), "items": "h" * 64, "reprs": [f"item {i}" for i in range(int(count))]}
    return name, found | ({"ids": "".join(letter * 22 for letter in ids)} if ids else {})


def todo(state: RunState, now: float = 0) -> list[str]:
    """The commands in words."""
    return [words(command) for command in decide(state, now)]


def words(command: Command) -> str:
    match command:
        case Launch(task, attempt, reusable):
            return f"launch {task}" + (f" again ({attempt})" if attempt else "") + (" or reuse" if reusable else "")
        case Skip(task, _):
            return f"skip {task}"
        case Cancel(task):
            return f"cancel {task}"
        case Wake(at):
            return f"wake at {at:g}"
        case Finish(ended):
            return f"finish {ended}"


SWEEP = flow(
    step("start", saves=("rates",)),
    step("train", "rates:start", foreach="rates", plan_reads="rates:start", host="start"),
    step("best", join=("train",)),
)


# ---- order ------------------------------------------------------------------------------------------------------------


def test_steps_that_need_nothing_start_at_once_and_side_by_side() -> None:
    assert todo(story(flow(step("a"), step("b"), step("c", "a_out:a")))) == ["launch a", "launch b"]


def test_a_step_starts_when_all_makers_of_its_inputs_are_done() -> None:
    spec = flow(step("a"), step("b"), step("c", "a_out:a b_out:b"))

    assert todo(story(spec, "a ok", "b launched")) == []
    assert todo(story(spec, "a ok", "b ok")) == ["launch c"]


def test_a_run_whose_tasks_are_done_has_succeeded() -> None:
    assert todo(story(flow(step("a")), "a ok")) == ["finish succeeded"]


def test_a_flow_without_steps_succeeds() -> None:
    assert todo(story(flow())) == ["finish succeeded"]


def test_after_adds_an_order_without_data() -> None:
    spec = flow(step("a"), step("b", after=("a",)))

    assert todo(story(spec)) == ["launch a"]
    assert todo(story(spec, "a ok")) == ["launch b"]


def test_deciding_again_gives_the_same_and_room_bounds_launches() -> None:
    state = story(flow(*(step(f"s{i}") for i in range(5))))

    assert decide(state, 0) == decide(state, 0)
    assert decide(state, 0, room=2) == [Launch(Task("s0")), Launch(Task("s1"))]


# ---- fan-outs -----------------------------------------------------------------------------------------------------------


def test_a_fan_out_runs_a_task_an_item_and_the_join_waits_for_all() -> None:
    assert todo(story(SWEEP, "start ok train=3")) == ["launch train[0]", "launch train[1]", "launch train[2]"]
    assert todo(story(SWEEP, "start ok train=3", "train[2] ok", "train[0] ok")) == ["launch train[1]"]
    assert todo(story(SWEEP, "start ok train=3", "train[2] ok", "train[0] ok", "train[1] ok")) == ["launch best"]


def test_an_empty_fan_out_gives_its_join_an_empty_sequence() -> None:
    state = story(SWEEP, "start ok train=0")

    assert todo(state) == ["launch best"]
    assert state.order_inputs(Task("best"))[1]["train"]["count"] == 0


def test_items_are_shown_by_their_reprs_and_ordered_by_place() -> None:
    state = story(SWEEP, "start ok train=2")

    assert state.tasks[Task("train", (1,))].item == "item 1"
    assert state.order_inputs(Task("train", (1,)))[2] == {"blob": "h" * 64, "i": 1}


def test_a_step_that_reads_a_foreach_step_runs_per_item_as_each_is_done() -> None:
    spec = flow(*SWEEP.steps[:2], step("score", "train_out:train", scope="train"), step("best", join=("score",)))

    state = story(spec, "start ok train=2", "train[1] ok")

    assert todo(state) == ["launch train[0]", "launch score[1]"]
    assert state.order_inputs(Task("score", (1,)))[0] == {"train_out": {"run": "2", "step": "train", "index": [1]}}


def test_nested_fan_outs_join_one_level_at_a_time() -> None:
    spec = flow(
        step("outer", foreach="xs", plan_reads="xs="),
        step("inner", foreach="ys", scope="outer", plan_reads="outer_out:outer", host="outer"),
        step("mid", join=("inner",), scope="outer"),
        step("top", join=("mid",)),
    )
    lines = ["outer.plan ok outer=2", "outer[0] ok inner=2", "outer[1] ok inner=0", "inner[0,1] ok"]

    assert todo(story(spec)) == ["launch the plan of outer"]
    assert todo(story(spec, *lines)) == ["launch inner[0,0]", "launch mid[1]"]
    assert todo(story(spec, *lines, "inner[0,0] ok", "mid[0] ok", "mid[1] ok")) == ["launch top"]


def test_a_plan_with_several_inputs_is_a_task_of_its_own() -> None:
    spec = flow(step("a"), step("b"), step("many", foreach="zip(a, b)", plan_reads="a_out:a b_out:b"))

    assert todo(story(spec, "a ok", "b ok")) == ["launch the plan of many"]
    assert todo(story(spec, "a ok", "b ok", "many.plan ok many=1")) == ["launch many[0]"]


def test_a_wide_join_is_told_only_what_is_not_as_usual() -> None:
    spec = flow(step("train", foreach="xs", plan_reads="xs=", min_ok="1"), step("best", join=("train",)))
    state = story(spec, "train.plan ok train=500", *(f"train[{i}] {'error' if i == 7 else 'ok'}" for i in range(500)))

    join = state.order_inputs(Task("best"))[1]["train"]

    assert join == {
        "index": [],
        "count": 500,
        "run": "2",
        "exceptions": {"7": {"state": "failed", "error": {"reason": "error", "message": "error"}}},
    }


def test_a_join_of_a_step_outside_a_fan_out_binds_its_one_task() -> None:
    state = story(flow(step("a"), step("b", join=("a",))), "a ok")

    assert todo(state) == ["launch b"]
    assert state.order_inputs(Task("b"))[1] == {"a": {"index": [], "count": None, "exceptions": {}, "run": "2"}}


@pytest.mark.parametrize("count", [None, -1, True, 100_001, "3"])
def test_a_plan_without_a_usable_count_fails_instead_of_fanning_out(count: Any) -> None:
    state = story(SWEEP)
    state.apply(events.launched(Task("start"), 0))
    state.apply(events.succeeded(Task("start"), 0, plans={"train": {"count": count}}))

    assert todo(state) == ["finish failed"]
    assert "items" in state.tasks[Task("train", (), "plan")].error["message"]


# ---- skipping ---------------------------------------------------------------------------------------------------------


def test_when_false_skips_the_step_and_what_only_it_could_feed() -> None:
    spec = flow(step("a", saves=("score",)), step("good", plan_reads="score:a", when="score > 1", host="a"), step("use", "good_out:good"))

    assert todo(story(spec, "a ok good=yes")) == ["launch good"]
    assert todo(story(spec, "a ok good=no")) == ["skip good"]
    assert todo(story(spec, "a ok good=no", "good skipped")) == ["skip use"]
    assert todo(story(spec, "a ok good=no", "good skipped", "use skipped")) == ["finish succeeded"]


def test_a_name_is_taken_from_the_last_maker_that_made_it() -> None:
    spec = flow(step("a", saves=("x",)), step("b", saves=("x",)), step("c", "x:b,a"))

    made = story(spec, "a ok", "b ok -x").order_inputs(Task("c"))[0]

    assert made == {"x": {"run": "2", "step": "a", "index": []}}
    assert story(spec, "a ok", "b ok").order_inputs(Task("c"))[0]["x"]["step"] == "b"
    assert todo(story(spec, "a ok -x", "b ok -x")) == ["skip c"]


def test_a_name_that_was_not_made_but_was_captured_is_taken_from_the_notebook() -> None:
    spec = flow(step("a", saves=("x",)), step("c", "x=:a"))

    state = story(spec, "a ok -x")

    assert todo(state) == ["launch c"]
    assert state.order_inputs(Task("c"))[0] == {}


def test_an_input_that_is_not_required_never_skips() -> None:
    assert todo(story(flow(step("a", saves=("x",)), step("c", "x?:a")), "a ok -x")) == ["launch c"]


def test_when_false_on_a_foreach_step_skips_its_join_but_an_after_goes_on() -> None:
    spec = flow(*SWEEP.steps, step("then", after=("train",)))

    state = story(spec, "start ok train=no")

    assert todo(state) == ["skip best", "launch then"]
    assert state.counts("train")["skipped"] == 1


def test_a_join_is_skipped_only_if_all_that_it_joins_was() -> None:
    spec = flow(
        step("a", saves=("p",)),
        step("x", plan_reads="p:a", when="p", host="a"),
        step("y", plan_reads="p:a", when="not p", host="a"),
        step("j", join=("x", "y")),
    )

    assert todo(story(spec, "a ok x=yes y=no", "y skipped", "x ok")) == ["launch j"]
    assert todo(story(spec, "a ok x=no y=no", "y skipped", "x skipped")) == ["skip j"]


def test_a_hosted_plan_that_its_host_did_not_evaluate_skips_its_step() -> None:
    spec = flow(step("a", catch="e", saves=("rates", "e")), step("train", foreach="rates", plan_reads="rates:a", host="a"))

    assert todo(story(spec, "a caught -rates")) == ["finish succeeded"]


# ---- failing ------------------------------------------------------------------------------------------------------------


def test_a_lost_attempt_is_tried_again_after_the_delay() -> None:
    spec = flow(step("train", retry=Retry(times=3, minutes_between_retries=3)))
    state = story(spec, "train lost @60")

    assert decide(state, now=61) == [Wake(at=240)]
    assert decide(state, now=240) == [Launch(Task("train"), attempt=1)]


@pytest.mark.parametrize("reason", ["error", "oom", "timeout", "killed", "lost", "exit"])
def test_every_reason_is_tried_again_until_the_attempts_are_used_up(reason: str) -> None:
    spec = flow(step("train", retry=Retry(times=1, minutes_between_retries=0)))

    assert todo(story(spec, f"train {reason}")) == ["launch train again (1)"]
    assert todo(story(spec, f"train {reason}", f"train {reason}")) == ["finish failed"]


@pytest.mark.parametrize(
    ("retry", "waits"),
    [
        (Retry(4, 1), [60, 60, 60, 60]),
        (Retry(4, 1, backoff=2), [60, 120, 240, 480]),
        (Retry(4, 1, backoff=10, max_minutes=5), [60, 300, 300, 300]),
        (Retry(2, 0, backoff=3), [0, 0]),
    ],
)
def test_the_waits_grow_by_the_factor_up_to_the_longest(retry: Retry, waits: list[float]) -> None:
    state, now = story(flow(step("a", retry=retry))), 0.0

    for attempt, wait in enumerate(waits):
        tell(state, f"a error @{now:g}")
        assert decide(state, now + wait) == [Launch(Task("a"), attempt + 1)]
        assert not wait or decide(state, now + wait - 0.5) == [Wake(now + wait)]
        now += wait
    tell(state, f"a error @{now:g}")
    assert todo(state, now) == ["finish failed"]


def test_jitter_parts_tasks_that_failed_together_and_is_the_same_whenever_the_log_is_read() -> None:
    spec = flow(step("train", foreach="xs", plan_reads="xs=", retry=Retry(1, 10, jitter=0.5)))
    lines = ["train.plan ok train=20", *(f"train[{i}] error @100" for i in range(20))]

    def waits(of: Spec) -> list[float]:
        state = story(of, *lines)
        return [state._backoff[Task("train", (i,))] - 100 for i in range(20)]

    assert waits(spec) == waits(spec)
    assert len(set(waits(spec))) == 20 and all(300 <= wait <= 900 for wait in waits(spec))
    assert max(waits(spec)) - min(waits(spec)) > 200
    assert waits(spec) != waits(flow(*spec.steps, run="3"))


def test_a_lost_attempt_does_not_make_the_wait_longer() -> None:
    state = story(flow(step("a", retry=Retry(3, 1, backoff=2))), "a vanished", "a vanished", "a error @100")

    assert decide(state, 100) == [Wake(160)]


BASES = ["ConnectionResetError", "builtins.ConnectionResetError", "ConnectionError", "OSError", "builtins.OSError", "Exception"]


@pytest.mark.parametrize(
    ("given", "reason", "again"),
    [
        ({}, "error", True),
        ({"only": ("OSError",)}, "error", True),
        ({"only": ("builtins.OSError",)}, "error", True),
        ({"only": ("ValueError", "KeyError")}, "error", False),
        ({"only": ("OSError",), "unless": ("ConnectionError",)}, "error", False),
        ({"unless": ("OSError",)}, "error", False),
        ({"unless": ("ValueError",)}, "error", True),
        ({"only": ("oom",)}, "error", False),
        ({"only": ("OSError",)}, "oom", False),
        ({"only": ("OSError", "oom")}, "oom", True),
        ({"only": ("timeout",)}, "timeout", True),
        ({"unless": ("timeout",)}, "timeout", False),
        ({"unless": ("OSError",)}, "killed", True),
        ({"unless": ("Exception",)}, "lost", True),
    ],
)
def test_what_failed_decides_whether_it_is_tried_again(given: dict[str, Any], reason: str, again: bool) -> None:
    state = story(flow(step("a", retry=Retry(3, 0, **given))), "a launched")
    error = {"reason": reason, "message": ""} | ({"type": BASES[0], "bases": BASES} if reason == "error" else {})

    assert state.attempts_left(Task("a"), error) is again
    state.apply(events.failed(Task("a"), 0, 0, error=error))
    assert todo(state) == (["launch a again (1)"] if again else ["finish failed"])


def test_an_error_without_its_base_classes_goes_by_its_own_name() -> None:
    state = story(flow(step("a", retry=Retry(1, 0, only=("KeyError",)))), "a launched")

    assert state.attempts_left(Task("a"), {"reason": "error", "type": "KeyError", "message": ""})
    assert not state.attempts_left(Task("a"), {"reason": "error", "type": "ValueError", "message": ""})


def test_a_factor_over_many_attempts_never_overflows() -> None:
    assert wait_s(Retry(1000, 1, backoff=100), 999, "a") == 365 * 86400


def test_a_failure_starts_nothing_new_but_what_runs_may_finish() -> None:
    spec = flow(step("a"), step("b"), step("c", "b_out:b"))

    assert todo(story(spec, "b launched", "a error")) == []
    assert todo(story(spec, "b launched", "a error", "b ok")) == ["finish failed"]


def test_siblings_of_a_failed_task_finish_with_their_retries_and_then_the_run_fails() -> None:
    spec = flow(
        step("train", foreach="xs", plan_reads="xs=", retry=Retry(1, 0)), step("score", "train_out:train", scope="train"), step("other")
    )
    lines = ["train.plan ok train=3", "other launched", "train[0] error", "train[0] error"]

    assert todo(story(spec, *lines)) == ["launch train[1]", "launch train[2]"]
    assert todo(story(spec, *lines, "train[1] error")) == ["launch train[1] again (1)", "launch train[2]"]
    assert todo(story(spec, *lines, "train[1] ok", "train[2] ok", "other ok")) == ["finish failed"]


def test_what_waits_for_its_next_attempt_is_given_up_when_the_run_fails() -> None:
    spec = flow(step("a", retry=Retry(3, 5)), step("b"))

    state = story(spec, "a error", "b error")

    assert todo(state) == ["finish failed"]
    assert state.tasks[Task("a")].state == "failed"


def test_a_step_that_needs_a_failed_one_never_runs_and_says_why() -> None:
    state = story(flow(step("a"), step("b", "a_out:a")), "a error")

    assert state.tasks[Task("b")].state == "waiting"
    assert "a_out of a" in str(state.tasks[Task("b")].blocked)


def test_failures_within_min_ok_are_tolerated_and_skip_only_their_own_items() -> None:
    spec = flow(
        step("train", foreach="xs", plan_reads="xs=", min_ok="50%"),
        step("score", "train_out:train", scope="train"),
        step("best", join=("score",)),
    )
    lines = ["train.plan ok train=4", "train[0] error", "train[1] ok", "train[2] ok", "train[3] ok"]

    assert todo(story(spec, *lines)) == ["skip score[0]", "launch score[1]", "launch score[2]", "launch score[3]"]
    done = story(spec, *lines, "score[0] skipped", "score[1] error", "score[2] ok", "score[3] ok")
    assert todo(done) == ["launch best"]
    assert sorted(done.order_inputs(Task("best"))[1]["score"]["exceptions"]) == ["0", "1"]
    too_many = story(spec, *lines, "score[0] skipped", "score[1] error", "score[2] error")
    assert todo(too_many) == ["launch score[3]"]
    tell(too_many, "score[3] ok")
    assert todo(too_many) == ["finish failed"]


def test_min_ok_of_an_outer_fan_out_tolerates_an_inner_one_that_lost_too_many() -> None:
    spec = flow(
        step("outer", foreach="xs", plan_reads="xs=", min_ok="1"),
        step("inner", foreach="ys", scope="outer", plan_reads="outer_out:outer", host="outer"),
        step("mid", join=("inner",), scope="outer"),
        step("top", join=("mid",)),
    )
    lines = ["outer.plan ok outer=2", "outer[0] ok inner=1", "outer[1] ok inner=1", "inner[0,0] error"]

    assert todo(story(spec, *lines)) == ["skip mid[0]", "launch inner[1,0]"]
    assert todo(story(spec, *lines, "mid[0] skipped", "inner[1,0] ok", "mid[1] ok")) == ["launch top"]


def test_a_plan_that_raised_in_its_hosts_worker_fails_the_run_and_is_shown() -> None:
    state = story(SWEEP, "start ok train=error")

    assert todo(state) == ["finish failed"]
    assert state.tasks[Task("train", (), "plan")].error["message"] == "bad expression"
    assert state.counts("train") == {"failed": 1}


def test_a_plan_task_that_failed_blocks_its_step() -> None:
    spec = flow(step("many", foreach="xs", plan_reads="xs="), step("j", join=("many",)))

    assert todo(story(spec, "many.plan error")) == ["finish failed"]
    assert todo(story(spec, "many.plan ok many=error")) == ["finish failed"]


def test_a_caught_failure_is_a_success_and_readers_of_what_it_did_not_make_are_skipped() -> None:
    spec = flow(step("a", catch="e", saves=("x", "e")), step("b", "x:a"), step("c", "e:a"))

    assert todo(story(spec, "a caught -x")) == ["skip b", "launch c"]


@pytest.mark.parametrize(
    ("text", "count", "least"),
    [("90%", 10, 9), ("90%", 15, 14), ("100%", 7, 7), ("0%", 7, 0), ("12", 10, 10), ("3", 10, 3), ("33.3%", 3, 1)],
)
def test_min_ok_counts_are_rounded_up(text: str, count: int, least: int) -> None:
    assert min_ok_count(text, count) == least


# ---- always -----------------------------------------------------------------------------------------------------------


def test_always_steps_run_last_one_after_the_other_whatever_happened() -> None:
    spec = flow(step("clean", always=True), step("tell", "a_out:a", always=True), step("a"))

    assert todo(story(spec)) == ["launch a"]
    for end in ("a ok", "a error", "stop"):
        assert todo(story(spec, end)) == ["launch clean"], end
        assert todo(story(spec, end, "clean ok")) == ["launch tell"], end
    assert todo(story(spec, "a error", "clean ok", "tell ok")) == ["finish failed"]
    assert todo(story(spec, "a ok", "clean error", "tell ok")) == ["finish failed"]


def test_an_always_step_gets_what_exists_and_is_told_the_failures() -> None:
    spec = flow(step("b"), step("a"), step("tell", "a_out:a b_out:b", always=True))
    state = story(spec, "b ok", "a error")

    made, _, _, failures = state.order_inputs(Task("tell"))

    assert made == {"b_out": {"run": "2", "step": "b", "index": []}}
    assert failures == [{"step": "a", "index": [], "message": "error"}]


def test_an_always_step_with_when_evaluates_it_first() -> None:
    spec = flow(step("a"), step("b"), step("tell", plan_reads="a_out:a b_out:b", when="a_out", always=True))

    assert todo(story(spec, "a ok", "b ok")) == ["launch the plan of tell"]
    assert todo(story(spec, "a ok", "b ok", "tell.plan ok tell=yes")) == ["launch tell"]
    assert todo(story(spec, "a ok", "b ok", "tell.plan ok tell=no")) == ["skip tell"]
    failed = story(spec, "a error")
    assert todo(failed) == ["skip the plan of tell"]
    tell(failed, "tell.plan skipped")
    assert todo(failed) == ["skip tell"]


# ---- stopping -----------------------------------------------------------------------------------------------------------


def test_a_stop_cancels_what_runs_stops_what_waits_and_ends_the_run_stopped() -> None:
    spec = flow(step("a"), step("b"), step("c", "a_out:a"))
    state = story(spec, "a launched", "stop")

    assert todo(state) == ["cancel a"]
    assert state.counts("b") == {"waiting": 0, "ready": 0, "stopped": 1}
    tell(state, "a stopped")
    assert todo(state) == ["finish stopped"]


def test_always_steps_run_after_a_stop_and_a_second_stop_ends_them_too() -> None:
    spec = flow(step("a"), step("clean", always=True))

    assert todo(story(spec, "a launched", "stop", "a stopped")) == ["launch clean"]
    assert todo(story(spec, "a launched", "stop", "a stopped", "clean launched", "stop")) == ["cancel clean"]
    assert todo(story(spec, "a launched", "stop", "a stopped", "stop")) == ["finish stopped"]


def test_a_task_that_commits_although_it_was_to_stop_has_succeeded_and_its_fan_out_is_stopped() -> None:
    state = story(SWEEP, "start launched", "stop", "start ok train=2")

    assert todo(state) == ["finish stopped"]
    assert state.counts("train")["stopped"] == 2


def test_a_stopped_task_blocks_what_needs_it_and_leaves_the_rest_alone() -> None:
    spec = flow(step("a"), step("b"), step("c", "a_out:a"), step("d", "b_out:b"))

    state = story(spec, "b launched", "stop a", "b ok")

    assert todo(state) == ["launch d"]
    tell(state, "d ok")
    assert todo(state) == ["finish stopped"]


def test_a_step_may_be_stopped_before_its_tasks_are_known_and_one_task_alone() -> None:
    assert todo(story(SWEEP, "stop train", "start ok train=3")) == ["finish stopped"]
    assert todo(story(SWEEP, "start ok train=2", "stop train[1]")) == ["launch train[0]"]


def test_a_stop_of_what_has_ended_changes_nothing() -> None:
    assert todo(story(flow(step("a"), step("b")), "a ok", "stop a", "b ok")) == ["finish succeeded"]


def test_a_failure_of_a_task_that_was_to_stop_is_not_tried_again() -> None:
    spec = flow(step("a", retry=Retry(3, 0)))

    assert todo(story(spec, "a launched", "stop a", "a error")) == ["finish failed"]


# ---- the cache --------------------------------------------------------------------------------------------------------


CACHED = flow(
    step("start", key="s"),
    step("train", foreach="start_out", plan_reads="start_out:start", host="start", saves=("score",), key="t"),
    step("best", join=("train",), key="b"),
    step("tell", "best_out:best", key="x"),
)


def key(state: RunState, name: str, *index: int) -> str:
    found = state.key(Task(name, index))
    assert found is not None
    return found[0]


def test_a_task_with_a_key_is_looked_up_first_and_launched_if_nothing_stands_for_it() -> None:
    state = story(CACHED)

    assert todo(state) == ["launch start or reuse"]
    tell(state, "start reused train=2 ~start_out=k")
    assert todo(state) == ["launch train[0] or reuse", "launch train[1] or reuse"]
    tell(state, "train[0] reused ~*=k0")
    state.not_reusable(Task("train", (1,)))
    assert todo(state) == ["launch train[1]"]
    tell(state, "train[1] ok ~*=k1")
    assert todo(state) == ["launch best or reuse"]
    assert state.tasks[Task("train", (0,))].made_at == 1.5
    assert state.printed_by(Task("train", (0,)))[0] == "1" and state.printed_by(Task("train", (1,)))[0] == "2"
    assert state.order_inputs(Task("best"))[1]["train"] == {"index": [], "count": 2, "exceptions": {}, "run": "2"}


def test_the_key_of_a_task_is_of_what_it_reads_and_of_its_own_item_wherever_that_stands() -> None:
    one = story(CACHED, "start ok train=3/abc ~start_out=k")
    other = story(CACHED, "start ok train=3/xab ~start_out=changed")

    assert key(one, "train", 0) == key(other, "train", 1)
    assert key(one, "train", 1) == key(other, "train", 2)
    assert len({key(one, "train", i) for i in range(3)}) == 3
    assert one.ids(Task("train", (2,))) == ["c" * 22]


def test_the_key_of_a_join_is_of_all_its_tasks_in_their_order_and_how_they_ended() -> None:
    def joined(*ends: str) -> str:
        return key(story(CACHED, "start ok train=2/ab", *ends), "best")

    same = joined("train[0] ok ~*=1", "train[1] ok ~*=2")
    assert same == joined("train[1] reused ~*=2", "train[0] ok ~*=1")
    assert len({same, joined("train[0] ok ~*=2", "train[1] ok ~*=1"), joined("train[0] ok ~*=1", "train[1] ok ~*=3")}) == 3


def test_equal_content_stops_a_change_from_spreading_and_another_content_does_not() -> None:
    before = story(CACHED, "start ok train=0 ~start_out=1", "best ok ~best_out=same")
    edited = story(CACHED, "start ok train=1 ~start_out=2", "train[0] ok ~*=1", "best ok ~best_out=same")
    changed = story(CACHED, "start ok train=0 ~start_out=1", "best ok ~best_out=other")

    assert key(before, "tell") == key(edited, "tell") != key(changed, "tell")


def test_a_task_has_no_key_where_one_of_what_it_reads_is_missing_or_where_it_always_runs() -> None:
    assert story(CACHED, "start ok train=0", "best ok").key(Task("tell")) is None
    assert story(flow(step("a", key="k", always=True))).key(Task("a")) is None
    assert story(flow(step("a"))).key(Task("a")) is None


def test_what_comes_after_a_step_is_reused_only_with_it() -> None:
    spec = flow(step("a", key="a"), step("b", after=("a",), key="b"))

    assert todo(story(spec, "a ok")) == ["launch b"]
    assert todo(story(spec, "a reused")) == ["launch b or reuse"]
    assert key(story(spec, "a ok"), "b") == key(story(spec, "a reused"), "b")  # what a resume finds it by
    other = flow(step("a", key="edited"), step("b", after=("a",), key="b"))
    assert key(story(spec, "a reused"), "b") != key(story(other, "a reused"), "b")


@pytest.mark.parametrize(("fields", "no_cache", "looks"), [({}, False, True), ({"fresh": True}, False, False), ({}, True, False)])
def test_fresh_and_no_cache_look_up_nothing_but_in_a_resume(fields: dict[str, Any], no_cache: bool, looks: bool) -> None:
    a = step("a", key="k", no_cache=no_cache)

    assert todo(story(flow(a, **fields))) == ["launch a or reuse" if looks else "launch a"]
    assert todo(story(flow(a, origin="1", **fields))) == ["launch a or reuse"]


def test_a_task_that_shares_waits_and_is_looked_up_again() -> None:
    state = story(flow(step("a", key="k")))

    state.share(Task("a"))
    assert todo(state) == []
    state.end_sharing(Task("a"))
    assert todo(state) == ["launch a or reuse"]


def test_an_expression_that_is_not_that_of_the_reused_task_is_evaluated_by_a_task_of_its_own() -> None:
    state = story(CACHED, "start reused ~start_out=k")

    assert todo(state) == ["launch the plan of train"]
    tell(state, "train[].plan ok train=1/a")
    assert todo(state) == ["launch train[0] or reuse"]


# ---- lost by flowbook itself ------------------------------------------------------------------------------------------


def test_a_lost_attempt_is_launched_again_and_costs_no_retry() -> None:
    state = story(flow(step("a", retry=Retry(1, 0))), "a vanished", "a vanished", "a error @1")

    assert todo(state, now=1) == ["launch a again (3)"] or "a" in todo(state, now=1)[0]
    tell(state, "a error @2")
    assert state.tasks[Task("a")].state == "failed"
    assert state.tasks[Task("a")].losses == 2


def test_a_lost_attempt_of_a_task_that_was_to_stop_is_stopped() -> None:
    state = story(flow(step("a")), "a launched", "stop a", "a vanished")

    assert state.tasks[Task("a")].state == "stopped"


# ---- impossible things --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        events.succeeded(Task("a"), 1),
        events.launched(Task("b"), 1),
        events.launched(Task("a"), 1, attempt=1),
        events.launched(Task("nobody"), 1),
        events.launched(Task("a", (3,)), 1),
        events.run_started(1),
    ],
)
def test_an_impossible_event_raises(event: Event) -> None:
    with pytest.raises(InvalidTransition):
        story(flow(step("a"), step("b", "a_out:a"))).apply(event)


def test_an_impossible_transition_tells_the_story_of_its_task() -> None:
    state = story(flow(step("a", retry=Retry(1, 0))), "a error @5", "a ok @9")

    with pytest.raises(InvalidTransition, match=r"settled, launched 0 @5.0, retried 0 @5.0, launched 1 @9.0, succeeded 1 @9.0"):
        state.apply(events.failed(Task("a"), 10, 1, error={}))


def test_nothing_happens_after_the_end() -> None:
    state = story(flow(step("a")), "a ok")
    state.apply(events.run_ended(9, "succeeded"))

    assert decide(state, 9) == []
    with pytest.raises(InvalidTransition, match="after the run ended"):
        state.apply(events.stop_requested(10))


def test_events_of_a_later_version_are_passed_over() -> None:
    story(flow(step("a"))).apply({"e": "admired", "at": 1})


def test_a_request_to_stop_an_unknown_step_changes_nothing() -> None:
    assert todo(story(flow(step("a")), "stop nobody")) == ["launch a"]


def test_every_way_out_of_a_state_leads_to_a_state() -> None:
    assert {state for ways in TRANSITIONS.values() for state in ways.values()} <= TRANSITIONS.keys()
    assert {"succeeded", "failed", "skipped", "stopped"} == ENDED


# ---- admission ----------------------------------------------------------------------------------------------------------


def names(asks: list[Resources], running: list[Resources], capacity: Capacity, most: int | None = None) -> list[int]:
    return [i for i, _, _ in admit(enumerate(asks), running, capacity, most)]


def test_tasks_are_admitted_in_order_until_cores_memory_or_gpus_are_used_up() -> None:
    assert names([Resources(cpu=0.5)] * 9, [Resources(cpu=1)], Capacity(cores=3)) == [0, 1, 2, 3]
    assert names([Resources(cpu=0.1)] * 20, [], Capacity(cores=1)) == list(range(10))
    assert names([Resources(cpu=0, memory_mb=400)] * 3, [], Capacity(4, 1000)) == [0, 1]
    assert names([Resources(cpu=0)] * 3, [Resources(memory_mb=1000)], Capacity(4, 1000)) == [0, 1, 2]
    assert names([Resources(cpu=0, gpu=1)] * 3, [], Capacity(4, gpus=2)) == [0, 1]
    assert names([Resources()] * 3, [], Capacity(cores=8), most=2) == [0, 1]


def test_nothing_passes_a_task_that_does_not_fit_yet() -> None:
    assert names([Resources(cpu=3), Resources(cpu=1)], [Resources(cpu=2)], Capacity(cores=4)) == []


def test_an_ask_beyond_the_machine_is_cut_with_a_note() -> None:
    granted, notes = capped(Resources(cpu=64, memory_mb=900_000, gpu=2), Capacity(cores=4, memory_mb=8000, gpus=1))

    assert granted == Resources(cpu=4, memory_mb=8000, gpu=1)
    assert [note.split(",")[0] for note in notes] == ["cpu 64 asked", "memory 900000 MB asked", "gpu 2 asked"]
    assert names([Resources(cpu=64, gpu=1)], [], Capacity(cores=2)) == [0]


# ---- any flow, any outcome ------------------------------------------------------------------------------------------------


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Random flows: steps that read earlier ones, fan out one or two levels, join, plan, retry, tolerate, catch."""
    steps: list[Step] = []
    for n in range(draw(st.integers(1, 7))):
        name = f"s{n}"
        before = [s for s in steps if not s.options.always]
        makers = draw(st.lists(st.sampled_from(before), max_size=2, unique=True)) if before else []
        scope: tuple[str, ...] = ()
        for maker in makers:
            if maker.scope[: len(scope)] == scope:
                scope = maker.scope
        makers = [m for m in makers if m.scope == scope[: len(m.scope)]]
        options: dict[str, Any] = {"retry": Retry(draw(st.integers(0, 1)), 1)}
        joined = ()
        if scope and draw(st.booleans()):
            joined = tuple(m.name for m in makers if m.scope == scope)
            makers, scope = [m for m in makers if m.scope != scope], scope[:-1]
            options["join"] = joined
        if before and draw(st.integers(0, 4)) == 0:
            options["after"] = (draw(st.sampled_from(before)).name,)
        reads = " ".join(f"{m.name}_out{draw(st.sampled_from(['', '?', '=']))}:{m.name}" for m in makers)
        kind = draw(st.sampled_from(["plain", "plain", "foreach", "when", "always"]))
        if kind == "foreach" and len(scope) < 2:
            options["min_ok"] = draw(st.sampled_from([None, "50%", "1"]))
        if kind == "when":
            options["when"] = "p"
        if kind == "always" and not scope:
            options["always"] = True
        host = None
        planned = kind == "when" or (kind == "foreach" and len(scope) < 2)
        hosts = [m for m in makers if m.scope == scope]
        if planned and len(hosts) == 1 and draw(st.booleans()):
            host = hosts[0].name
        steps.append(
            step(
                name,
                reads,
                " ".join(scope),
                foreach="xs" if kind == "foreach" and len(scope) < 2 else "",
                plan_reads=" ".join(f"{m.name}_out:{m.name}" for m in hosts) if planned else "",
                host=host,
                **options,
            )
        )
    return flow(*steps, max_parallel=None)


class Play:
    """Plays a run with random outcomes, and checks on the way what must always hold."""

    def __init__(self, spec: Spec, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.spec, self.draw = spec, draw
        self.log: list[Event] = []
        self.state = RunState(spec)
        self.now = 0.0
        self.launched: set[tuple[Task, int]] = set()
        self.stops = 0

    def happened(self, event: Event) -> None:
        self.log.append(event)
        self.state.apply(event)

    def run(self) -> None:
        self.happened(events.run_started(0))
        for _ in range(3000):
            if self.state.ended is not None:
                return
            self.turn()
        raise AssertionError("the run does not end")

    def turn(self) -> None:
        commands = decide(self.state, self.now, room=3)
        assert commands == decide(self.state, self.now, room=3)
        acted = False
        for command in commands:
            match command:
                case Launch(task, attempt):
                    assert (task, attempt) not in self.launched, "launched twice"
                    self.launched.add((task, attempt))
                    self.happened(events.launched(task, self.now, attempt))
                    acted = True
                case Skip(task, why):
                    assert why
                    self.happened(events.skipped(task, self.now, why))
                    acted = True
                case Finish(ended):
                    assert not self.state.active
                    self.happened(events.run_ended(self.now, ended))
                    return
                case Cancel(task):
                    self.happened(events.stopped(task, self.now))
                    acted = True
        if self.stops < 2 and self.draw(st.integers(0, 60)) == 0:
            self.stops += 1
            self.happened(events.stop_requested(self.now))
            return
        if self.state.active:
            self.end_one()
        elif not acted:
            wakes = [command.at for command in commands if isinstance(command, Wake)]
            assert wakes, f"nothing runs, nothing is to be done: {self.log}"
            self.now = wakes[0]

    def end_one(self) -> None:
        task = self.draw(st.sampled_from(sorted(self.state.active, key=str)))
        attempt = self.state.tasks[task].attempt
        if self.draw(st.integers(0, 5)) == 0:
            self.happened(events.failed(task, self.now, attempt, error={"reason": "error", "message": "x"}))
            return
        step = self.spec.step(task.step)
        planned = [step] if task.part == "plan" else [self.spec.step(name) for name in step.hosted]
        plans = {other.name: self.plan(other) for other in planned}
        missing = [f"{task.step}_out"] if self.draw(st.integers(0, 6)) == 0 else []
        self.happened(events.succeeded(task, self.now, attempt, plans=plans, missing=missing))

    def plan(self, step: Step) -> dict[str, Any]:
        if self.draw(st.integers(0, 9)) == 0:
            return {"error": {"reason": "error", "message": "bad"}}
        if step.options.foreach is None:
            return {"when": self.draw(st.booleans())}
        return {"count": self.draw(st.integers(0, 3)), "items": "h"}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_run_ends_and_every_prefix_of_its_log_folds(data: st.DataObject) -> None:
    spec = data.draw(specs())
    play = Play(spec, data.draw)
    play.run()

    for length in range(0, len(play.log), 1 + len(play.log) // 20):
        decide(fold(spec, play.log[:length]), play.now)
    again = fold(spec, play.log)
    assert {t: (s.state, s.attempt) for t, s in again.tasks.items()} == {t: (s.state, s.attempt) for t, s in play.state.tasks.items()}
    check_counts(again)
    if again.ended == "succeeded":
        assert all(s.state in ("succeeded", "skipped") for s in again.tasks.values() if not _tolerated_loss(spec, s.task)), play.log


def _tolerated_loss(spec: Spec, task: Task) -> bool:
    return any(spec.step(name).options.min_ok for name in spec.step(task.step).scope)


def check_counts(state: RunState) -> None:
    for step in state.spec.steps:
        tasks = [s for t, s in state.tasks.items() if t.step == step.name and (t.part == "body" or s.state != "succeeded")]
        for name in TRANSITIONS:
            extra = state.counts(step.name).get(name, 0) - sum(s.state == name for s in tasks)
            assert extra == 0 or (name == "skipped" and step.options.foreach is not None and extra > 0)


# ---- the cost -------------------------------------------------------------------------------------------------------------


def calls(width: int) -> int:
    """Function calls to run a fan-out of this width with a step per item and a join, two launches a turn."""
    spec = flow(*SWEEP.steps[:2], step("score", "train_out:train", scope="train"), step("best", join=("score",)))
    state, count = RunState(spec), 0

    def counting(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counting)
    try:
        state.apply(events.run_started(0))
        while state.ended is None:
            for command in decide(state, 0, room=2):
                if isinstance(command, Finish):
                    state.apply(events.run_ended(0, command.state))
                elif isinstance(command, Launch):
                    state.apply(events.launched(command.task, 0))
                    plans = {"train": {"count": width, "items": "h"}} if command.task.step == "start" else {}
                    state.apply(events.succeeded(command.task, 0, plans=plans))
    finally:
        sys.setprofile(None)
    assert state.ended == "succeeded"
    return count


def test_the_work_of_a_fan_out_and_its_join_is_linear_in_its_width() -> None:
    assert calls(800) / calls(200) < 4.3


def test_failing_stopping_and_retrying_a_wide_fan_out_is_linear_too() -> None:
    def cost(width: int) -> int:
        spec = flow(step("train", foreach="xs", plan_reads="xs=", retry=Retry(1, 0), min_ok="1"), step("best", join=("train",)))
        state, count = story(spec, f"train.plan ok train={width}"), 0

        def counting(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counting)
        try:
            while commands := [c for c in decide(state, 0, room=4) if isinstance(c, Launch)]:
                for command in commands:
                    state.apply(events.launched(command.task, 0, command.attempt))
                    state.apply(events.failed(command.task, 0, command.attempt, error={"reason": "lost"}))
            decide(state, 0)
        finally:
            sys.setprofile(None)
        return count

    assert cost(800) / cost(200) < 5  # a heap: n log n
