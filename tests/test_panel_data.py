"""What the run panel shows, from events and hints alone; that it stays bounded; and that its types are those of the browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from flowbook.cards import wire
from flowbook.engine import events
from flowbook.engine.events import Event, Task
from flowbook.kernel import display, panel_data
from flowbook.kernel.engine import RunView
from flowbook.kernel.lasting import lasting_html
from flowbook.kernel.panel_data import Made, PanelData, card_key
from flowbook.kernel.runs import Run
from flowbook.spec.flow import Retry
from flowbook.store import layout
from flowbook.store.memory import MemoryStore
from tests.stories.test_state import flow, step

NOW = 1_000_000.0
TYPES = Path(__file__).parent.parent / "labextension" / "src" / "types.ts"


def panel(*told: Event, count: int = 4, **options: Any) -> PanelData:
    """The panel of a run of start, a fan-out work and join, that heard these events."""
    work = step("work", "start_out:start", foreach="start_out", host="start", **options)
    spec = flow(step("start"), work, step("join", join=("work",)), run="13")
    view = RunView(spec)
    data = PanelData(Run(spec, view), "token")
    view.watchers.append(data.heard)
    start = Task("start")
    first = [events.run_started(NOW), events.launched(start, NOW), events.succeeded(start, NOW + 1, plans={"work": {"count": count}})]
    for event in (*first, *told):
        view.apply(event)
    return data


def work(i: int) -> Task:
    return Task("work", (i,))


def ran(i: int, **facts: Any) -> list[Event]:
    return [events.launched(work(i), NOW + 2), events.succeeded(work(i), NOW + 5, **facts)]


def failed(i: int, at: float = NOW + 4) -> list[Event]:
    error = {"reason": "error", "type": "ValueError", "message": "no", "cell": "Cell In[3]", "line": 2, "traceback": "Traceback …"}
    return [events.launched(work(i), NOW + 2), events.failed(work(i), at, error=error)]


def phase(i: int, name: str, why: str = "", **began: float) -> dict[str, Any]:
    told = {"say": "frame", "f": "phase", "step": "work", "index": [i], "part": "body", "phase": name, "began": began}
    return told | ({"why": why} if why else {})


def frame(i: int, version: int, *parts: dict[str, Any], name: str = "main") -> dict[str, Any]:
    card = {"v": 1, "id": name, "type": "blank", "state": "running", "n": version, "components": list(parts)}
    return {"say": "frame", "f": "card", "step": "work", "index": [i], "part": "body", "attempt": 0, "id": name, "v": version, "card": card}


def lines(**last: float) -> dict[str, Any]:
    series = [{"name": name, "x": [0, 1], "y": [9.0, value], "count": 2} for name, value in last.items()]
    return {"type": "lines", "id": "#0", "series": series}


def rows(data: PanelData, now: float = NOW + 100) -> dict[str, dict[str, Any]]:
    return {row["id"]: dict(row) for row in data.shown(now).tasks}


def table(data: PanelData) -> list[dict[str, Any]]:
    found = data.shown(NOW + 100).tables["work"]
    names = [column["name"] for column in found["columns"]]
    return [dict(zip(names, row, strict=True)) for row in found["rows"]]


# ---- the two sides speak of the same ------------------------------------------------------------------------------------------

PAIRS = {
    "Head": panel_data.Head,
    "Param": panel_data.Param,
    "Said": panel_data.Said,
    "Graph": panel_data.Graph,
    "GraphNode": panel_data.GraphNode,
    "GraphEdge": panel_data.GraphEdge,
    "Step": panel_data.StepJson,
    "Task": panel_data.TaskJson,
    "Column": panel_data.Column,
    "Table": panel_data.Table,
    "Detail": panel_data.Detail,
    "Piece": panel_data.Piece,
    "Failure": panel_data.Failure,
    "Artifact": panel_data.Artifact,
}


def interfaces() -> dict[str, dict[str, str]]:
    """Every interface of types.ts: field → type."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", TYPES.read_text(), flags=re.DOTALL)
    found = re.findall(r"interface (\w+) \{(.*?)\n\}", text, re.DOTALL)
    return {name: dict(re.findall(r"^\s+(\w+\??): ([^;]+);", body, re.MULTILINE)) for name, body in found}


@pytest.mark.parametrize("name", PAIRS)
def test_the_browser_and_the_kernel_have_the_same_fields(name: str) -> None:
    theirs, ours = interfaces()[name], get_type_hints(PAIRS[name])

    assert set(theirs) == set(ours)
    for field, kind in ours.items():
        nullable = type(None) in get_args(kind)
        assert ("null" in theirs[field]) == nullable or theirs[field] in ("Cell[][]",), (name, field, theirs[field], kind)
        wanted = {int: "number", float: "number", str: "string", bool: "boolean"}.get(kind)
        if wanted == "string":
            assert theirs[field] in ("string", "State", "ColumnKind"), (name, field)
        elif wanted:
            assert theirs[field] == wanted, (name, field)


def test_the_states_of_tasks_are_those_that_the_browser_knows() -> None:
    from flowbook.engine.state import TRANSITIONS

    known = re.search(r"export type State = (.*?);", TYPES.read_text())
    assert known is not None
    assert set(re.findall(r'"(\w+)"', known[1])) == {*TRANSITIONS, "running"}


def test_all_that_is_shown_is_json_that_a_browser_reads() -> None:
    bad = "half a surrogate \ud800"
    data = panel(
        *failed(0), *ran(1, peak_mb=float("nan"), cpu_s=float("inf")), events.launched(work(2), NOW + 3, why=bad), *ran(3, warnings=[bad])
    )
    data._run.view.hint({"say": "output", "step": "work", "index": [2], "text": bad, "size": 20})
    data._run.view.hint(frame(2, 1, lines(loss=float("nan")), {"type": "markdown", "text": bad, "id": "#1"}))
    data.commits[work(1)] = Made.of({"artifacts": {"x": {"kind": "json", "json": float("inf")}, bad: {"kind": "json", "json": bad}}})
    shown = data.shown(NOW + 100)

    for part in (shown.head, shown.steps, shown.tasks, shown.tables, shown.details, data.layout()):
        json.dumps(part, allow_nan=False, ensure_ascii=False).encode()
    assert rows(data)["work[1]"]["peak_mb"] is None


# ---- tasks --------------------------------------------------------------------------------------------------------------------


def test_a_task_has_the_times_of_its_phases() -> None:
    data = panel(*ran(0, seconds={"loading": 0.5, "running": 2.0, "saving": 0.25}))
    row = rows(data)["work[0]"]

    assert (row["queued"], row["launched"], row["running"], row["saving"], row["ended"]) == (
        NOW + 1,
        NOW + 2,
        NOW + 2.75,
        NOW + 4.75,
        NOW + 5,
    )


def test_a_running_task_tells_its_phase_as_it_is_heard() -> None:
    data = panel(events.launched(work(0), NOW + 2))
    assert rows(data)["work[0]"]["state"] == "launched"

    data._run.view.hint(phase(0, "running", loading=0.5, running=1.5))
    row = rows(data)["work[0]"]
    assert (row["state"], row["phase"], row["running"], row["saving"], row["ended"]) == ("running", None, NOW + 3.5, None, None)

    data._run.view.hint(phase(0, "saving", loading=0.5, running=1.5, saving=9.0))
    assert (rows(data)["work[0]"]["state"], rows(data)["work[0]"]["phase"], rows(data)["work[0]"]["saving"]) == (
        "running",
        "saving",
        NOW + 11,
    )
    assert data.shown(NOW + 12).steps[1]["phase"] == "saving"


def test_a_pod_tells_what_it_does_before_its_body_runs_and_why_it_does_not_get_on() -> None:
    data = panel(events.launched(work(0), NOW + 2, why="code changed"), events.launched(work(1), NOW + 2))
    view = data._run.view
    assert [row["phase"] for row in rows(data).values()] == [None] * len(rows(data))

    view.hint(phase(0, "queued", "no node for cpu 900", queued=0.0))
    row = rows(data)["work[0]"]
    assert (row["state"], row["phase"], row["why"], row["pod"]) == ("launched", "queued", "no node for cpu 900", {"queued": NOW + 2})
    assert data.shown(NOW + 3).head["notes"] == ["work waits: no node for cpu 900"]
    assert "1 queued" in data.shown(NOW + 3).steps[1]["note"] and data.shown(NOW + 3).steps[1]["phase"] is None, (
        "of the other nothing is known"
    )

    view.hint(phase(1, "queued", "no node for cpu 900", queued=0.0))
    assert data.shown(NOW + 3).head["notes"] == ["work: 2 wait: no node for cpu 900"] and data.shown(NOW + 3).steps[1]["phase"] == "queued"

    view.hint(phase(0, "loading", queued=0.0, scheduled=1.0, pulling=1.5, starting=4.0, importing=4.5, loading=5.0))
    row = rows(data)["work[0]"]
    assert (row["phase"], row["why"]) == ("importing", None)
    assert row["pod"] == {"queued": NOW + 2, "scheduled": NOW + 3, "pulling": NOW + 3.5, "starting": NOW + 6, "importing": NOW + 6.5}
    assert [row["state"] for row in table(data)[:2]] == ["importing", "queued"]
    assert data.shown(NOW + 8).steps[1]["phase"] == "importing", "the furthest, as long as none runs"
    assert "1 queued, 1 importing" in data.shown(NOW + 8).steps[1]["note"]

    view.hint(phase(0, "running", queued=0.0, importing=4.5, running=6.0))
    assert data.shown(NOW + 8).steps[1]["phase"] is None and rows(data)["work[0]"]["why"] == "code changed"


def test_without_a_panel_the_status_says_the_phase_in_its_place_and_afterwards_how_long_each_took() -> None:
    data = panel(events.launched(work(0), NOW + 2))
    run, began = data._run, {"queued": 0.0, "scheduled": 1.0, "pulling": 1.5}
    run.view.hint(phase(0, "pulling", "the image <b> cannot be pulled", **began))
    text, page = display.status_text(run, NOW + 9), display.status_html(run, NOW + 9)
    assert re.search(r"▶ work +pulling +0/4 +7.0 s  1 pulling · the image <b> cannot be pulled$", text, re.MULTILINE), text
    assert "<span>pulling</span>" in page and "the image &lt;b&gt; cannot be pulled" in page

    run.view.hint(phase(0, "saving", **began, starting=9.0, importing=10.0, running=12.0, saving=13.0))
    assert re.search(r"▶ work +saving ", display.status_text(run, NOW + 16))

    run.view.apply(events.succeeded(work(0), NOW + 16, began={**began, "starting": 9.0, "importing": 10.0, "running": 12.0}))
    said = "at most queued 1.0 s, scheduled 0.5 s, pulling 7.5 s, starting 1.0 s, importing 2.0 s"
    assert said in display.status_text(run, NOW + 16) and said in display.status_html(run, NOW + 16)


def test_the_phases_of_a_pod_are_known_when_nobody_followed_it() -> None:
    began = {
        "queued": 0.0,
        "scheduled": 0.5,
        "pulling": 1.0,
        "starting": 13.0,
        "importing": 13.5,
        "loading": 14.0,
        "running": 14.5,
        "saving": 20.0,
    }
    lost = {"reason": "lost", "message": "there is no image"}
    data = panel(
        events.launched(work(0), NOW + 2),
        events.succeeded(work(0), NOW + 23, began=began, seconds={"running": 5.4, "saving": 0.3}),
        events.launched(work(1), NOW + 2),
        events.failed(work(1), NOW + 9, error=lost, began={"queued": 0.0, "pulling": 1.0}),
    )
    row = rows(data)["work[0]"]

    assert row["pod"] == {phase: NOW + 2 + at for phase, at in began.items() if phase not in ("loading", "running", "saving")}
    assert (row["running"], row["saving"], row["ended"], row["phase"]) == (NOW + 16.5, NOW + 22, NOW + 23, None)
    assert (rows(data)["work[1]"]["pod"], rows(data)["work[1]"]["running"]) == ({"queued": NOW + 2, "pulling": NOW + 3}, None)
    assert "at most queued 1.0 s, scheduled 0.5 s, pulling 12 s, starting 0.5 s, importing 1.0 s" in data.shown(NOW + 30).steps[1]["note"]


@pytest.mark.parametrize(
    "began",
    [["queued"], "soon", {"queued": "soon"}, {"queued": float("nan"), "pulling": None, "starting": True}, {"queued": -5}, {"x" * 99: 1}],
)
def test_what_a_log_says_of_phases_that_cannot_be_harms_nothing(began: Any) -> None:
    data = panel(events.launched(work(0), NOW + 2), {**events.succeeded(work(0), NOW + 5), "began": began})
    row = rows(data)["work[0]"]

    assert (row["state"], row["pod"], row["running"]) == ("succeeded", None, None)
    assert "at most" not in data.shown(NOW + 9).steps[1]["note"]


def test_that_a_pod_asks_for_less_than_its_step_is_said() -> None:
    note = "pods get 0.01 of the cpu, memory and disk asked for (kubernetes_scale)"
    data = panel(events.launched(work(0), NOW + 2, notes=[note]), events.launched(work(1), NOW + 2, notes=[note]))

    assert data.shown(NOW + 3).steps[1]["note"].count(note) == 1
    assert data.shown(NOW + 3).head["notes"] == [f"work: {note}"]


def test_of_a_second_attempt_nothing_of_the_first_is_left() -> None:
    task = work(0)
    data = panel(events.launched(task, NOW + 2), retry=Retry(times=2))
    data._run.view.hint(phase(0, "running", running=1.0))
    data._run.view.hint(frame(0, 7, lines(loss=3.0)))
    assert table(data)[0]["loss"] == 3.0
    for event in (events.failed(task, NOW + 9, error={"reason": "error"}), events.launched(task, NOW + 200, 1)):
        data._run.view.apply(event)
    row = rows(data)["work[0]"]

    assert (row["state"], row["attempt"], row["running"], row["launched"]) == ("launched", 1, None, NOW + 200)
    assert "loss" not in table(data)[0] and data.shown(NOW + 300).cards == {}
    data._run.view.hint(frame(0, 7, lines(loss=1.0)))
    shown = data.shown(NOW + 300).cards[card_key(task, "main")]
    assert shown["components"][0]["series"][0]["y"][-1] == 1.0


def test_what_waits_says_why_and_what_was_taken_over_says_from_where() -> None:
    data = panel(events.reused(work(0), NOW + 2, run="12", index=(0,), made_at=NOW - 99), *failed(1), *ran(2), *ran(3))
    found = rows(data)

    assert found["work[0]"]["cached"] == "12" and found["work[0]"]["launched"] is None
    assert found["join"]["state"] == "waiting" and found["join"]["why"]


def test_a_panel_that_comes_late_shows_what_was_before() -> None:
    data = panel(*ran(0), *failed(1), events.launched(work(2), NOW + 6))
    late = PanelData(data._run, "token")

    assert [row["state"] for row in late.shown(NOW + 9).tasks] == [row["state"] for row in data.shown(NOW + 9).tasks]
    assert late.shown(NOW + 9).head["error"] == data.shown(NOW + 9).head["error"]
    assert set(late.shown(NOW + 9).details) >= {"work[0]", "work[1]", "work[2]"}


def test_steps_and_head_say_what_the_status_says() -> None:
    data = panel(*ran(0), *failed(1), *ran(2), *ran(3), events.run_ended(NOW + 9, "failed"))
    shown = data.shown(NOW + 100)

    assert [(s["step"], s["state"], s["total"], s["fan"]) for s in shown.steps] == [
        ("start", "succeeded", 1, False),
        ("work", "failed", 4, True),
        ("join", "not run", 1, False),
    ]
    assert shown.head["error"] == "work[1] of run 13 at Cell In[3], line 2: ValueError: no"
    assert shown.head["retry"] and shown.head["state"] == "failed" and shown.head["ended"] == NOW + 9
    assert panel(*ran(0)).shown(NOW + 9).head["retry"] is None


def test_a_foreach_that_was_evaluated_is_no_task_of_its_own_one_that_failed_is() -> None:
    spec = flow(step("fan", foreach="range(2)"), run="1")
    view = RunView(spec)
    data = PanelData(Run(spec, view))
    view.watchers.append(data.heard)
    plan = Task("fan", (), "plan")
    view.apply(events.run_started(NOW))
    view.apply(events.launched(plan, NOW))
    assert [row["id"] for row in data.shown(NOW + 1).tasks] == ["fan plan"]

    view.apply(events.succeeded(plan, NOW + 1, plans={"fan": {"count": 2}}))
    assert [row["id"] for row in data.shown(NOW + 1).tasks] == ["fan[0]", "fan[1]"]
    assert "fan plan" not in data.shown(NOW + 1).details


# ---- tables -------------------------------------------------------------------------------------------------------------------


def test_the_table_has_item_state_time_last_metric_and_scalars() -> None:
    data = panel(*ran(0), *failed(1), events.launched(work(2), NOW + 3))
    data._run.view.state.tasks[work(0)].item = "0.01"
    data._run.view.hint(frame(2, 1, lines(loss=0.5, accuracy=0.9)))
    data.commits[work(0)] = Made.of(
        {
            "artifacts": {
                "loss": {"kind": "json", "json": 0.25},
                "model": {"kind": "value", "blob": "x", "type": "Net"},
                "name": {"kind": "json", "json": "a"},
            }
        }
    )
    found = table(data)

    assert found[0] == {"task": "work[0]", "i": 0.01, "state": "succeeded", "time": 3.0, "accuracy": None, "loss": 0.25, "name": "a"}
    assert found[1]["state"] == "failed" and found[1]["loss"] is None
    assert found[2]["loss"] == 0.5 and found[2]["accuracy"] == 0.9 and found[2]["time"] == -(NOW + 3)
    assert found[3]["time"] is None
    kinds = {c["name"]: (c["kind"], c["numeric"]) for c in data.shown(NOW + 100).tables["work"]["columns"]}
    assert kinds["loss"] == ("artifact", True) and kinds["accuracy"] == ("metric", True) and kinds["name"] == ("artifact", False)
    assert kinds["time"] == ("time", True) and kinds["task"] == ("task", False) and kinds["i"] == ("item", True)


@pytest.mark.parametrize(
    ("item", "names", "found"),
    [
        ("0.01", ("lr",), {"lr": 0.01}),
        ("(0.1, 'a')", ("lr", "kind"), {"lr": 0.1, "kind": "a"}),
        ("(1, 2, 3)", ("a", "b"), {"item": "(1, 2, 3)"}),
        ("Config(lr=3)", ("c",), {"c": "Config(lr=3)"}),
        ("'quoted'", ("s",), {"s": "quoted"}),
        ("True", ("b",), {"b": True}),
        ("1e999", ("x",), {"x": "inf"}),
        (str(2**60), ("n",), {"n": str(2**60)}),
        ("[" * 5000, ("deep",), {"deep": "[" * 119 + "…"}),
        (None, ("lr",), {}),
    ],
)
def test_items_are_read_as_numbers_and_words_where_they_are_such(item: str | None, names: tuple[str, ...], found: dict[str, Any]) -> None:
    assert panel_data.item_values(item, names) == found


@pytest.mark.parametrize(
    ("text", "value"), [("np.float64(0.5)", 0.5), ("0.25", 0.25), ("-1e-3", -0.001), ("nan", None), ("x", None), ("9" * 50, None)]
)
def test_scalars_of_numpy_are_read_from_their_repr(text: str, value: float | None) -> None:
    assert panel_data._scalar({"kind": "value", "inline": "…", "type": "numpy.float64", "repr": text}) == value


# ---- details ------------------------------------------------------------------------------------------------------------------


def test_output_and_displays_stand_in_their_order_as_they_were_printed() -> None:
    data = panel(events.launched(work(0), NOW + 2))
    view = data._run.view
    text = "before é\n\x1b[32mafter\x1b[0m\n"
    view.hint({"say": "output", "step": "work", "index": [0], "text": text, "size": len(text.encode())})
    figure = {
        "f": "display",
        "say": "frame",
        "step": "work",
        "index": [0],
        "at": len("before é\n".encode()),
        "data": {"image/png": "aGk=", "text/plain": "<f>"},
    }
    view.hint(figure)
    view.hint({**figure, "at": len(text.encode()), "data": {"text/html": "<b>x</b><script>alert(1)</script>"}})

    assert data.shown(NOW + 9).details["work[0]"]["output"] == [
        {"mime": "stream", "data": "before é\n"},
        {"mime": "image/png", "data": "aGk="},
        {"mime": "stream", "data": "\x1b[32mafter\x1b[0m\n"},
        {"mime": "text/html", "data": "<b>x</b>"},
    ]


def test_of_a_long_output_the_end_is_shown_and_more_of_it_where_somebody_looks() -> None:
    data = panel(events.launched(work(0), NOW + 2))
    data._run.view.hint({"say": "output", "step": "work", "index": [0], "text": "x" * 64_000, "size": 90_000})

    def printed() -> int:
        detail = data.shown(NOW + 9).details["work[0]"]
        assert detail["size"] == 90_000
        return sum(len(piece["data"]) for piece in detail["output"])

    assert printed() == panel_data.OUTPUT
    data.look_at(work(0))
    assert printed() == panel_data.OUTPUT_LOOKED_AT


def test_what_was_written_over_takes_no_room_from_what_is_seen() -> None:
    data = panel(events.launched(work(0), NOW + 2))
    bar = "".join(f"\r{i:3d} of 100 █" for i in range(101))
    text = f"first\n{bar}\n{bar * 30}\rdone\nlast\n"
    data._run.view.hint({"say": "output", "step": "work", "index": [0], "text": text, "size": len(text.encode())})
    detail = data.shown(NOW + 9).details["work[0]"]
    shown = "".join(piece["data"] for piece in detail["output"])

    assert shown == "first\n 99 of 100 █\r100 of 100 █\n100 of 100 █\rdone\nlast\n"
    assert detail["size"] == len(shown.encode()), "nothing is said to be missing"


@pytest.mark.parametrize(
    ("text", "seen"),
    [("a\r\n", "a\r\n"), ("a\rb\rc\r\r\n", "b\rc\r\n"), ("\r\r\r", "\r"), ("a\r\rb", "\rb"), ("no", "no")],
)
def test_of_a_line_the_last_two_states_are_kept(text: str, seen: str) -> None:
    assert panel_data._last_states(text) == seen


def test_a_card_is_checked_before_it_is_shown_and_ends_with_its_attempt() -> None:
    data = panel(events.launched(work(0), NOW + 2))
    data._run.view.hint(frame(0, 1, {"type": "evil", "onload": "x"}, {"type": "markdown", "id": "m", "text": "hi", "extra": 1}))
    key = card_key(work(0), "main")
    shown = data.shown(NOW + 9)

    assert shown.details["work[0]"]["cards"] == [key]
    assert [part["type"] for part in shown.cards[key]["components"]] == ["error", "markdown"] and "extra" not in shown.cards[key][
        "components"
    ][1]
    data._run.view.apply(events.failed(work(0), NOW + 5, error={"reason": "oom", "message": "it took too much"}))
    ended = data.shown(NOW + 9).cards[key]
    assert ended["state"] == "failed" and ended["components"][-1]["title"].startswith("oom: it took too much")


@pytest.mark.parametrize(
    "message",
    [
        {"card": 3, "v": 1},
        {"card": {}, "v": "x"},
        {"card": {"components": 3}, "v": 1},
        {"card": {"components": [{"type": "lines", "series": [3]}]}, "v": 1},
    ],
)
def test_a_frame_of_any_form_does_no_harm(message: dict[str, Any]) -> None:
    data = panel(events.launched(work(0), NOW + 2))
    data._run.view.hint({"say": "frame", "f": "card", "step": "work", "index": [0], "id": "main", **message})

    assert data.shown(NOW + 9).details["work[0]"]["cards"] in ([], ["card work[0] main"])


def test_what_the_store_has_of_cards_is_asked_for_once_when_a_task_has_ended() -> None:
    data = panel(*ran(0), events.launched(work(1), NOW + 3))

    assert work(0) in data.wanted_cards() and work(1) not in data.wanted_cards()
    data.stored[work(0)] = {"main": {"v": 1, "id": "main", "type": "blank", "state": "succeeded", "n": 1, "components": []}}
    assert work(0) not in data.wanted_cards()
    assert "card work[0] main" in data.shown(NOW + 9).cards


# ---- wide runs ----------------------------------------------------------------------------------------------------------------


def wide(count: int) -> PanelData:
    told = [event for i in range(count - 30) for event in (failed(i, NOW + 3 + i) if i % 50 == 7 else ran(i))]
    return panel(*told, *(events.launched(work(i), NOW + 9) for i in range(count - 30, count - 10)), count=count)


def test_a_wide_run_shows_failed_running_and_newest_tasks_in_order_and_counts_of_all() -> None:
    data = wide(1_000)
    shown = data.shown(NOW + 100)
    states = [row["state"] for row in shown.tasks]

    assert len(shown.tasks) == panel_data.TASKS and states.count("failed") == 20 and states.count("launched") == 20
    assert [row["index"] for row in shown.tasks if row["step"] == "work"] == sorted(
        row["index"] for row in shown.tasks if row["step"] == "work"
    )
    assert len(shown.tables["work"]["rows"]) == panel_data.ROWS and shown.tables["work"]["total"] == 1_000
    assert shown.steps[1]["counts"]["succeeded"] == 950
    assert len(shown.details) <= panel_data.DETAILS


def test_a_task_that_somebody_looks_at_is_shown_however_many_there_are() -> None:
    data = wide(1_000)
    assert "work[3]" not in rows(data)
    data.look_at(work(3))
    shown = data.shown(NOW + 100)

    assert "work[3]" in {row["id"] for row in shown.tasks} and "work[3]" in shown.details
    assert "work[3]" in [row[0] for row in shown.tables["work"]["rows"]]
    data.look_at(Task("nothing", (9,)))
    data.look_at(work(99_999))
    for i in range(20):
        data.look_at(work(i))
    assert "work[3]" not in data.shown(NOW + 100).details


def test_details_and_cards_stay_within_their_bounds() -> None:
    data = wide(200)
    view = data._run.view
    for i in range(170, 190):
        view.hint(frame(i, 1, {"type": "markdown", "id": "m", "text": "x" * 400_000}))
        view.hint({"say": "output", "step": "work", "index": [i], "text": "y" * 300_000, "size": 300_000})
    for i in range(200):
        data.commits[work(i)] = Made.of({"artifacts": {f"a{n}": {"kind": "json", "json": "z" * 5_000} for n in range(100)}})
    shown = data.shown(NOW + 100)

    assert len(json.dumps(shown.details)) < 2 * panel_data.DETAIL_BYTES
    assert len(json.dumps(shown.cards)) < 1.2 * panel_data.CARD_BYTES
    named = {key for detail in shown.details.values() for key in detail["cards"]}
    assert named == set(shown.cards)


def test_cards_of_many_tasks_are_forgotten_those_of_ended_ones_first() -> None:
    data = panel(*(events.launched(work(i), NOW + 2) for i in range(100)), count=100)
    for i in range(80):
        data._run.view.hint(frame(i, 1, lines(loss=float(i))))

    assert len(data._cards) == panel_data.CARDS_KEPT
    assert table(data)[0]["loss"] == 0.0  # the last metric is kept


def test_a_card_that_moved_can_be_had_alone_a_new_one_is_told_with_all_else() -> None:
    data = panel(events.launched(work(0), NOW + 2), retry=Retry(1))
    data.heard(frame(0, 1, {"type": "markdown", "text": "first"}))
    assert (data.only_cards, data.moved) == (0, {})
    key = card_key(work(0), "main")
    data.shown(NOW + 100)
    data.heard(frame(0, 2, {"type": "markdown", "text": "second"}))
    data.heard(frame(0, 3, {"type": "markdown", "text": "third", "wrong": 1}))
    assert data.only_cards == 2 and list(data.moved) == [key]

    assert data.take([key])[key]["components"] == [{"type": "markdown", "id": "#0", "text": "third"}] and not data.moved
    data.heard(frame(0, 4, {"type": "markdown", "text": "fourth"}))
    assert data.shown(NOW + 100).cards[key]["components"][0]["text"] == "fourth" and not data.moved, "it went with all else"
    data.heard(frame(0, 5, {"type": "markdown", "text": "fifth"}))
    for event in (failed(0)[-1], events.launched(work(0), NOW + 5, 1)):
        data._run.view.apply(event)
    assert not data.moved, "of a new attempt there is no card yet"


@pytest.mark.parametrize("count", [50, 90])
def test_however_many_cards_change_the_same_ones_are_shown(count: int) -> None:
    """Else the card that one looks at would be another one ten times a second."""
    data = panel(*(events.launched(work(i), NOW + 2) for i in range(count)), count=count)

    def refreshed(version: int, order: Iterable[int]) -> set[str]:
        for i in order:
            data._run.view.hint(frame(i, version, lines(loss=float(version))))
        return set(data.shown(NOW + 100).cards)

    first = refreshed(1, range(count))
    assert len(first) >= panel_data.DETAILS // 3
    assert refreshed(2, reversed(range(count))) == first == refreshed(3, range(count))
    data.look_at(work(count - 1))
    refreshed(4, range(count))
    assert data.shown(NOW + 100).cards[card_key(work(count - 1), "main")]["components"][0]["series"][0]["y"][-1] == 4.0


def test_asking_costs_what_is_shown_not_what_there_is() -> None:
    small, large = wide(1_000), wide(10_000)

    def cost(data: PanelData) -> float:
        data.shown(NOW + 100)
        took = []
        for _ in range(5):
            begun = time.process_time()
            data.shown(NOW + 100)
            took.append(time.process_time() - begun)
        return min(took)

    assert cost(large) < 3 * cost(small) + 0.002


# ---- the card of the run --------------------------------------------------------------------------------------------------------


def run_card(data: PanelData) -> Any:
    return data.shown(NOW + 100).cards.get(panel_data.RUN_CARD)


def test_what_tasks_put_on_the_card_of_the_run_is_one_card_of_the_panel() -> None:
    data = panel(*(events.launched(work(i), NOW + 2) for i in range(3)))
    assert run_card(data) is None
    for i in range(2):
        data._run.view.hint(frame(i, 1, {**lines(loss=0.5 + i), "id": "metric:loss", "title": "loss"}, name=".run"))

    found = run_card(data)
    assert [line["name"] for line in found["components"][0]["series"]] == ["work[0]", "work[1]"] and found["state"] == "running"
    assert run_card(data) is found, "nothing changed: it is not sent again"
    assert data.shown(NOW + 100).details["work[0]"]["cards"] == [], "it is no card of the task"
    assert table(data)[1]["loss"] == 1.5
    data.heard(frame(0, 2, {"type": "markdown", "id": "#0", "text": "new"}, name=".run"))
    assert [part["type"] for part in run_card(data)["components"]] == ["markdown", "lines"]


def test_a_new_attempt_takes_back_what_the_last_one_put_on_the_card_of_the_run() -> None:
    data = panel(*failed(0), retry=Retry(1))
    data.heard(frame(0, 1, {"type": "markdown", "text": "first"}, name=".run"))
    assert run_card(data)["state"] == "running" and len(run_card(data)["components"]) == 1
    view = data._view
    view.apply(events.launched(work(0), NOW + 5, 1))

    assert run_card(data) is None


def test_parts_of_the_run_card_that_were_not_heard_are_asked_for_where_the_code_speaks_of_it() -> None:
    silent = panel(*ran(0))
    assert silent.wanted_parts() == []
    spec = replace(silent._run.spec, sources={"<w>": {"label": "Cell In[2]", "source": "card.run.append('x')"}})
    spec = replace(spec, steps=tuple(replace(each, filename="<w>" if each.name == "work" else f"<{each.name}>") for each in spec.steps))
    data = PanelData(Run(spec, silent._view), "token")
    assert data.wanted_parts() == [work(0)]
    part = wire.checked({"v": 1, "id": ".run", "state": "running", "components": [{"type": "markdown", "text": "x"}]})
    data.put({work(0): part})

    assert data.wanted_parts() == [] and run_card(data)["components"][0]["text"] == "x" and run_card(data)["state"] == "running"
    silent._view.ended = "stopped"
    assert run_card(data)["state"] == "failed"
    data.put({work(1): None})
    assert len(run_card(data)["components"]) == 1
    others = replace(spec, sources={"<f>": {"source": "def tell():\n    card.run.append('x')"}})
    assert PanelData(Run(others, silent._view), "token").wanted_parts() == [Task("start"), work(0)], "any step may call it"


def test_the_card_of_an_attempt_that_waits_to_be_tried_again_does_not_say_that_it_runs() -> None:
    data = panel(*failed(0), retry=Retry(1))
    data.heard(frame(0, 1, {"type": "markdown", "text": "so far"}))
    card = data.shown(NOW + 100).cards[card_key(work(0), "main")]

    assert card["state"] == "failed" and card["components"][-1]["title"] == "ValueError: no"
    fresh = panel(events.launched(work(0), NOW + 2))
    fresh.heard(frame(0, 1, {"type": "markdown", "text": "so far"}))
    fresh._view.ended = "lost"
    assert fresh.shown(NOW + 100).cards[card_key(work(0), "main")]["state"] == "failed"


# ---- what it adds to a notebook ---------------------------------------------------------------------------------------------------


def realistic(i: int) -> Any:
    """A card of a training: text, a table, two lines of 500 points, and every third one a picture."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    from flowbook.cards import Image, LineChart, Markdown, ProgressBar, Table

    chart = LineChart("loss")
    for n in range(500):
        chart.add("train", 1 / (n + 1) + i, n)
        chart.add("test", 1 / (n + 2) + i, n)
    parts = [Markdown(f"## Task {i}\n" + "What it does. " * 20), ProgressBar(100, value=i), chart]
    parts.append(Table([[n, n * 0.123456789 * i, f"word {n}"] for n in range(50)], ["n", "x", "word"]))
    if i % 3 == 0:
        figure, axes = pyplot.subplots()
        axes.plot([(n * i) % 17 for n in range(200)])
        parts.append(Image(figure))
        pyplot.close(figure)
    head = {"id": "main", "type": "blank", "state": "succeeded", "n": 1}
    return wire.write(head, [(f"#{n}", part.freeze()) for n, part in enumerate(parts)])


@pytest.mark.parametrize("large", [False, True])
def test_fifty_cards_add_less_than_two_megabytes_to_a_notebook(large: bool) -> None:
    data = panel(*(event for i in range(50) for event in ran(i)), count=50)
    spec = replace(data._run.spec, sources={"<w>": {"source": "card.append(1)"}})
    run = Run(spec, data._view)
    picture = {"type": "image", "id": "#0", "src": "data:image/png;base64," + "A" * 400_000}
    store = MemoryStore()
    for i in range(50):
        raw = json.dumps({"v": 1, "id": "main", "state": "succeeded", "components": [picture]}).encode() if large else realistic(i)
        store.put(layout.card(spec.flow, spec.run, "work", (i,), 0, "main"), raw)
        data.stored[work(i)] = {"main": wire.read(raw)}
    shown = data.shown(NOW + 100)
    lasts = lasting_html(store, run, {})

    assert len(shown.cards) >= (2 if large else 20) and len(json.dumps(shown.cards)) + len(lasts.encode()) < 2_000_000
    assert "cards of 46 more tasks" in lasts, "what is left out is said"


def test_the_bundle_of_the_panel_stays_small() -> None:
    built = Path(panel_data.__file__).parent.parent / "static" / "panel.js"
    if not built.exists():
        pytest.skip("the panel is not built: make panel")
    assert built.stat().st_size <= 150_000
