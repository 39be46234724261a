"""The report of a whole run, and the cards that `%flow card` shows: from hand-made stores, and from a real kernel."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from flowbook.cards import Markdown, Table, html, wire
from flowbook.cards.report import ERRORS, TASKS_OF_A_STEP, report
from flowbook.engine import events
from flowbook.engine.events import Task
from flowbook.errors import StoreError, StoreMissing
from flowbook.spec import flow as flows
from flowbook.spec.flow import Foreach, Options, Spec, Step
from flowbook.store import layout
from flowbook.store.files import FilesStore
from flowbook.store.memory import MemoryStore
from tests.kernel.conftest import Notebook, book  # noqa: F401 (a fixture)
from tests.test_cards import Seen, assert_harmless

Json = Any


def steps(**options: Json) -> tuple[Step, ...]:
    fan = Options(foreach=Foreach("x", "range(3)", ("x",)))
    return (
        Step("start", "", "<a>", "Cell In[1]"),
        Step("train", "", "<b>", "Cell In[2]", options=fan, scope=("train",), host="start"),
        Step("end", "", "<c>", "Cell In[3]"),
    )


class History:
    """A run in a store, told event by event."""

    def __init__(self, run: str = "7", **fields: Json) -> None:
        self.store = MemoryStore()
        self.spec = Spec("demo", run, steps(), started_at=1.8e9, user="ada", flowbook="0.1.0", python="3.11", **fields)
        self.store.put(layout.spec("demo", run), json.dumps(flows.to_json(self.spec)).encode())
        self.told: list[events.Event] = [events.run_started(10.0)]

    def card(self, step: str, text: str, index: tuple[int, ...] = (), attempt: int = 0, run: str | None = None, **head: Json) -> None:
        head = {"id": "main", "type": "blank", "state": "succeeded", "n": 1, **head}
        data = wire.write(head, [("#0", Markdown(text).freeze())])
        self.store.put(layout.card("demo", run or self.spec.run, step, index, attempt, head["id"]), data)

    def page(self) -> str:
        self.store.put(layout.log_prefix("demo", self.spec.run) + "000000.json", events.batch(events.pack(self.told)))
        return report(self.store, "demo", self.spec.run)


def words(page: str) -> str:
    """The text of a page without its head."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.partition("</head>")[2]))


def test_a_report_tells_state_parameters_steps_errors_and_cards() -> None:
    history = History(
        params={"lr": {"kind": "json", "json": 0.1}, "<b>": {"kind": "pickle", "repr": "<Odd>"}}, tags=("nightly",), origin="6"
    )
    start, good, bad = Task("start"), Task("train", (0,)), Task("train", (1,))
    history.told += [events.launched(start, 10.5), events.succeeded(start, 12.0)]
    history.told += [events.launched(good, 12.0), events.launched(bad, 12.0), events.succeeded(good, 15.5)]
    error = {
        "type": "ValueError",
        "message": "no <rows>",
        "traceback": "Traceback…\nValueError: no <rows>",
        "item": "x=1",
        "output_tail": "epoch 3",
    }
    history.told += [
        events.failed(bad, 13.0, error={"reason": "first"}),
        events.launched(bad, 14.0, 1),
        events.failed(bad, 16.0, 1, error=error),
    ]
    history.told += [events.run_ended(16.5, "failed")]
    history.card("start", "as it began")
    history.card("train", "attempt nought", (1,))
    history.card("train", "attempt one", (1,), 1, state="running")
    page = history.page()
    said = words(page)

    assert_harmless(page)
    for text in ("demo · run 7", "failed · 6.5 s", "by ada", "resumes run 6", "tags nightly", "lr 0.1", "&lt;b&gt; &lt;Odd&gt;"):
        assert text in said, text
    assert "start succeeded 1.5 s" in said and "train 1 succeeded, 1 failed 2 4.0 s" in said and "end not run" in said
    assert "train[1] (item x=1): ValueError: no &lt;rows&gt;" in said and "epoch 3" in said and "first" not in said
    assert "as it began" in said and "attempt one" in said and "attempt nought" not in said
    assert said.index("attempt one") < said.index("no &lt;rows&gt;", said.index("attempt one")), "the killed attempt's card has its error"
    assert page.count("<svg") == 1 and ">train<" in page and "#1c1f23" in page and "prefers-color-scheme:dark" in page


def test_cards_of_results_that_were_taken_over_are_those_of_their_run() -> None:
    history = History("8")
    history.told += [
        events.reused(Task("start"), 10.1, run="7", index=()),
        events.reused(Task("train", (0,)), 10.2, run="5", index=(2,), attempt=3),
    ]
    history.told += [events.run_ended(11, "succeeded")]
    history.card("start", "of seven", run="7")
    history.card("train", "of five", (2,), 3, run="5")
    said = words(history.page())

    assert "of seven" in said and "of five" in said and "start succeeded, cached" in said


def test_a_run_that_goes_on_is_reported_as_far_as_it_is() -> None:
    history = History()
    history.told += [events.launched(Task("start"), 10.5)]
    history.card("start", "half", state="running")
    said = words(history.page())

    assert "not ended" in said and "start running" in said and "half" in said and "Errors" not in said


def test_of_a_wide_run_the_first_tasks_are_shown_failed_ones_in_front() -> None:
    history = History()
    for i in range(60):
        task = Task("train", (i,))
        history.card("train", f"number {i:03d}", (i,))
        history.told += [
            events.launched(task, 11.0),
            events.succeeded(task, 12.0) if i < 30 else events.failed(task, 12.0, error={"message": f"m{i}"}),
        ]
    page = history.page()
    said = words(page)

    assert said.count("number 0") == TASKS_OF_A_STEP and "number 030" in said and "number 000" not in said
    assert "40 more tasks of train are left out" in said and f"{30 - ERRORS} more tasks failed" in said


@pytest.mark.parametrize(
    "odd",
    [
        [],
        {"e": 3},
        {"e": "launched"},
        {"e": "failed", "step": "start", "error": "x", "at": "now"},
        {"e": "succeeded", "step": 5, "at": "x"},
    ],
)
def test_a_log_of_odd_events_is_told_as_far_as_it_can_be(odd: Json) -> None:
    history = History()
    history.told += [events.launched(Task("start"), 10.5), odd, events.run_ended(12, "failed")]

    assert "run 7" in words(history.page())


def test_what_is_damaged_or_missing_is_said() -> None:
    history = History()
    with pytest.raises(StoreMissing):
        report(history.store, "demo", "99")
    history.store.put(layout.log_prefix("demo", "7") + "000000.json", b"{")
    with pytest.raises(StoreError, match="run.log/000000.json is damaged"):
        report(history.store, "demo", "7")
    history.store.put(layout.spec("demo", "9"), b"[1]")
    with pytest.raises(StoreError, match="run.json is damaged"):
        report(history.store, "demo", "9")


def test_a_card_for_a_notebook_brings_its_style_and_stays_small() -> None:
    parts = [Markdown("## Epoch 3\n" + "text " * 200), Table([[i, i * 0.5, "x"] for i in range(100)], ["a", "b", "c"])]
    data = wire.write(
        {"id": "main", "type": "blank", "state": "running", "n": 1}, [(f"#{i}", part.freeze()) for i, part in enumerate(parts)]
    )
    drawn = html.card_html(wire.read(data))
    seen = Seen()
    seen.feed(drawn)

    assert len(drawn) < 40_000 and not {"html", "body", "head", "script"} & {tag for tag, _ in seen.elements}
    rules = re.sub(r"@media[^{]*\{", "", drawn.partition("<style>")[2].partition("</style>")[0]).split("}")
    assert [rule for rule in rules if rule.strip() and not rule.strip().startswith(".fbc")] == []


def test_the_card_of_the_run_stands_first_in_its_report() -> None:
    history = History()
    start, train = Task("start"), [Task("train", (i,)) for i in range(3)]
    history.told += [events.launched(start, 10.0), events.succeeded(start, 11.0, plans={"train": {"count": 3}})]
    for i, task in enumerate(train):
        history.told.append(events.launched(task, 11.0))
        history.card("train", f"*part* {i}", (i,), id=wire.OF_RUN)
    history.told += [events.succeeded(task, 12.0) for task in train[:2]]
    text = words(history.page())

    assert text.index("Card of the run") < text.index("part 0") < text.index("part 1") < text.index("part 2") < text.index("Graph")
    assert "Cards" not in text.partition("Graph")[2] and "run 7 of demo" in text.partition("Card of the run")[2]


def test_the_card_of_an_attempt_that_was_killed_or_lost_never_says_that_it_runs() -> None:
    error = {"reason": "oom", "message": "more than 2 GB"}
    start = Task("start")
    ends = {
        "oom: more than 2 GB": [events.failed(start, 12.0, error=error)],
        "Lost: the attempt was lost": [events.lost(start, 12.0, 0, "its engine died")],
        "Stopped: the task was stopped": [events.stopped(start, 12.0)],
    }
    for told, end in ends.items():
        history = History()
        history.told += [events.launched(start, 10.0), *end]
        history.card("start", "so far", state="running")
        page = words(history.page())

        assert "so far" in page and told in page and "running" not in page.partition("Cards")[2], told

    history = History()
    history.told.append(events.launched(start, 10.0))
    history.card("start", "so far", state="running")
    assert "running" in words(history.page()).partition("Cards")[2]
    gone = words(report(history.store, "demo", "7", lost=True)).partition("Cards")[2]
    assert "running" not in gone and "its engine is gone" in gone


# ---- in a real kernel ----------------------------------------------------------------------------------------------------


def test_cards_and_the_report_of_a_run_in_a_notebook(book: Notebook) -> None:  # noqa: F811
    book.ok("%%flowstep start\ncard.append('hello from *start*')\nxs = [1, 2, 3]")
    book.ok(
        "%%flowstep train --foreach 'x in xs' --card\nprint('trying', x)\ndisplay({'shown': x})\ncard.metric('loss', 1 / x)\ny = 1 / (x - 2)"
    )
    book.ok("%%flowstep plain\nz = 1")
    book.fails("%flow run --wait")

    shown = next(iter(book.ok("%flow card start").displays.values()))
    assert "hello from <em>start</em>" in shown["text/html"] and "card blank of start: succeeded" in shown["text/plain"]
    shown = next(iter(book.ok("%flow card 1/train").displays.values()))
    assert shown["text/html"].count('class="fbc-head"') == 3 and "ZeroDivisionError" in shown["text/html"]
    assert all(text in shown["text/html"] for text in ("trying 1", "trying 2", "{&#x27;shown&#x27;: 3}")), (
        "the default card shows what the cell showed"
    )
    assert shown["text/plain"].index("train[1]: failed") < shown["text/plain"].index("train[0]: succeeded")
    for task in ("train[2]", "1/train/2", "1/train[2]"):
        shown = next(iter(book.ok(f"%flow card {task} --id default").displays.values()))
        assert shown["text/html"].count('class="fbc-head"') == 1 and "train[2]" in shown["text/html"]
    for line, why in (
        ("nothing", "no step 'nothing'"),
        ("plain", "no card of plain"),
        ("train/7", "no task train[7]"),
        ("train --id x", "no card 'x'"),
        ("9/train", "no run 9"),
        ("a/b/c/d", "is no run, step or task"),
        ("", "no task of run 1 put anything on the run's card"),
        ("1", "no task of run 1 put anything on the run's card"),
        ("7", "no run 7"),
        ("1 --id x", "a run has one"),
    ):
        assert why in book.fails(f"%flow card {line}"), line
    assert "the cards of a step" in book.ok("%flow card?").text

    assert "report.html" in book.ok("%flow report -o report.html").stdout
    page = (book.folder / "report.html").read_text()
    assert "hello from <em>start</em>" in page and "ZeroDivisionError" in page and "train[1]" in page
    assert_harmless(page)
    assert "book-1.html" in book.ok("from flowbook import flow\nflow.report(run=1)").stdout
    assert (book.folder / "book-1.html").exists()
    assert "cannot be written" in book.fails("%flow report -o no/such/folder.html")
    matches = book.client.complete("%flow card st", reply=True, timeout=30)["content"]["matches"]
    assert any("start" in match for match in matches)


def test_the_card_of_a_run_is_in_the_notebook_with_the_lines_of_all_tasks(book: Notebook) -> None:  # noqa: F811
    book.ok("%%flowstep start\nxs = [1, 2]\ncard.run.append('# What came out')")
    book.ok("%%flowstep train --foreach 'x in xs'\nfor i in range(3):\n    card.run.metric('loss', x / (i + 1))\ny = x")
    book.ok("%flow run --wait")

    for line in ("", "1"):
        shown = next(iter(book.ok(f"%flow card {line}").displays.values()))
        assert all(text in shown["text/html"] for text in ("What came out", "train[0]", "train[1]", "run 1")), line
        assert "card of run 1: succeeded" in shown["text/plain"] and "lines: loss" in shown["text/plain"]
    assert "no card of train" in book.fails("%flow card train"), "a step has no card because it put something on the run's"
    assert "What came out" in report(FilesStore(book.folder / "store" / "default"), "book", "1")
