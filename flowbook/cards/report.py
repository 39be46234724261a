"""A whole run as one HTML page: its graph, parameters, steps, errors and cards. Needs no network and runs no script; light or dark as its reader's system is.

Reads the store alone (the spec, the log, the cards), so any run of any kernel can be reported, also one that still runs or was left open. Bounded:
of each step the cards of its first tasks, failed ones in front, and MOST_CHARS in all; what is left out is said.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from flowbook.cards import html, whole, wire
from flowbook.errors import StoreError
from flowbook.spec import flow as flows
from flowbook.spec import graph
from flowbook.spec.flow import Spec, Step, task_name
from flowbook.store import layout, preview
from flowbook.store.base import Store

Json = Any
Where = tuple[str, layout.Index, int]  # the run, the index and the attempt that made it: there stand its cards

TASKS_OF_A_STEP = 20  # whose cards are shown
ERRORS = 20
TRACEBACK = 20_000  # characters of one
MOST_CHARS = 20_000_000  # of all cards as HTML
OPEN = 10  # cards that are unfolded
_STATE = {"launched": "running", "lost": "running", "reused": "succeeded"}
_LAST = {"lost": "ready", "reused": "succeeded"}

STYLE = """<style>
body{margin:24px auto;max-width:960px;padding:0 16px;color-scheme:light dark;background:Canvas;color:CanvasText;font:14px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;overflow-wrap:anywhere}
.fbr h1{font-size:22px;margin:0 0 2px}.fbr>h2{font-size:16px;margin:28px 0 8px;border-bottom:1px solid color-mix(in srgb,CanvasText 20%,Canvas);padding-bottom:3px}
.fbr .dim{color:color-mix(in srgb,CanvasText 65%,Canvas);font-size:12px}
.fbr>div>table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}.fbr>div>table th,.fbr>div>table td{padding:3px 16px 3px 0;text-align:left;vertical-align:top;border-bottom:1px solid color-mix(in srgb,CanvasText 14%,Canvas)}.fbr>div>table th{font-weight:600}
.fbr .wide{overflow-x:auto}.fbr .graph{--jp-layout-color1:Canvas;--jp-ui-font-color1:CanvasText;--jp-ui-font-color2:color-mix(in srgb,CanvasText 65%,Canvas)}.fbr>details{margin:0 0 10px}.fbr>details>summary{cursor:pointer;font-weight:600}.fbr .bad{color:light-dark(#b3261e,#ff8a80)}.fbr .good{color:light-dark(#23743f,#7bd29a)}
.fbr>details>pre,.fbr>details>details>pre{white-space:pre-wrap;background:color-mix(in srgb,CanvasText 6%,Canvas);padding:8px 10px;border-radius:4px;font:12px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow:auto;max-height:480px}
.fbr bdi{unicode-bidi:isolate}.fbr .fbc{margin:6px 0 16px}@media print{.fbr details{break-inside:avoid}}
</style>"""


@dataclass
class Task:
    """What the log says of one task so far. Times are the engine's clock."""

    step: str
    index: layout.Index
    where: Where
    state: str = "running"
    began: float | None = None
    ended: float | None = None
    error: Json = None
    cached: bool = False
    last: str = (
        "launched"  # how its last attempt stands, as engine/state.py has it: launched, succeeded, failed, stopped, or ready if it was lost
    )

    @property
    def name(self) -> str:
        return task_name(self.step, self.index)


@dataclass(frozen=True)
class Story:
    """A run as its log tells it. `state` None: it has not ended, as far as the log goes."""

    tasks: tuple[Task, ...]
    state: str | None
    took_s: float | None

    def of(self, step: str) -> list[Task]:
        return [task for task in self.tasks if task.step == step]


def report(store: Store, flow: str, run: str, *, lost: bool = False) -> str:
    """The page of a run; `lost`: nothing drives it any more, as far as the caller knows. Raises StoreMissing if there is none of that name, StoreError if its spec or its log is damaged."""
    key = layout.spec(flow, run)
    try:
        spec: Spec = flows.from_json(Spec, json.loads(store.get(key)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError(f"{key} is damaged: it does not hold the spec of a run.") from None
    return page(spec, read_story(store, spec), store, lost=lost)


def read_story(store: Store, spec: Spec) -> Story:
    tasks: dict[tuple[str, layout.Index], Task] = {}
    began = ended = None
    state = None
    for event in _events(store, spec):
        kind, at = event.get("e"), _number(event.get("at"))
        if kind == "run_started" and began is None:
            began = at
        elif kind == "run_ended":
            state, ended = str(event.get("state")), at
        elif event.get("step") and event.get("part", "body") == "body" and kind != "stop_requested":
            place = (str(event["step"]), tuple(event.get("index") or ()))
            task = tasks.setdefault(place, Task(*place, (spec.run, place[1], 0)))
            _tell(task, event, spec.run)
    took = ended - began if began is not None and ended is not None else None
    return Story(tuple(sorted(tasks.values(), key=lambda task: (task.step, task.index))), state, took)


def _events(store: Store, spec: Spec) -> Iterator[dict[str, Json]]:
    for key in sorted(store.list(layout.log_prefix(spec.flow, spec.run))):
        try:
            found = json.loads(store.get(key))["events"]
            yield from (event for event in found if isinstance(event, dict))
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{key} is damaged: it does not hold the events of a run.") from None


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def _tell(task: Task, event: dict[str, Json], run: str) -> None:
    kind, at = str(event["e"]), _number(event.get("at"))
    task.state, task.last = _STATE.get(kind, kind), _LAST.get(kind, kind)
    attempt = event.get("attempt") or 0
    if kind == "launched":
        task.began, task.ended, task.error = at if task.began is None else task.began, None, None
        task.where = (run, task.index, attempt)
    elif kind == "reused":
        there = event.get("from_index")
        task.where, task.cached = (str(event.get("run")), tuple(there) if there else task.index, attempt), True
    elif kind in ("succeeded", "failed", "stopped"):
        task.ended, task.error = at, event.get("error")


# ---- the page --------------------------------------------------------------------------------------------------------


def page(spec: Spec, story: Story, store: Store, *, lost: bool = False) -> str:
    """The page of what `read_story` found; `store` is read for the cards."""
    parts = [
        _head(spec, story),
        _section("Card of the run", _run_card(spec, story, store, lost)),
        _section("Graph", f'<div class="wide graph">{graph.graph_svg(spec.steps, _states(spec, story))}</div>'),
    ]
    parts.append(_section("Parameters", _parameters(spec)))
    parts.append(_section("Steps", _steps(spec, story)))
    parts.append(_section("Errors", _errors(story)))
    parts.append(_section("Cards", _cards(spec, story, store, lost)))
    title = escape(f"{spec.flow} · run {spec.run}")
    body = "".join(parts).encode("utf-8", "replace").decode()
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{html.POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="referrer" content="no-referrer"><title>{title}</title>{html.STYLE}{STYLE}</head>'
        f'<body><div class="fbr">{body}</div></body></html>\n'
    )


def _section(title: str, inner: str) -> str:
    return f"<h2>{title}</h2>{inner}" if inner else ""


def _head(spec: Spec, story: Story) -> str:
    state = story.state or "not ended"
    colour = {"succeeded": "good", "failed": "bad"}.get(state, "")
    told = [f'<span class="{colour}">{escape(state)}</span>']
    told += [escape(_seconds(story.took_s))] if story.took_s is not None else []
    told += [f"began {_moment(spec.started_at)}"] if spec.started_at else []
    told += [f"by {escape(spec.user)}"] if spec.user else []
    told += [f"resumes run {escape(spec.origin)}"] if spec.origin else []
    told += [f"tags {escape(', '.join(spec.tags))}"] if spec.tags else []
    about = " · ".join(told)
    made = f"flowbook {escape(spec.flowbook)}, Python {escape(spec.python)}" if spec.flowbook and spec.python else ""
    return f'<h1><bdi>{escape(spec.flow)}</bdi> · run {escape(spec.run)}</h1><div>{about}</div><div class="dim">{made}</div>'


def _moment(at: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "?"


def _seconds(seconds: float) -> str:
    """A duration as people read it.

    >>> _seconds(3.21), _seconds(75), _seconds(7322)
    ('3.2 s', '1 min 15 s', '2 h 02 min')
    """
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def _states(spec: Spec, story: Story) -> dict[str, str]:
    found = {}
    for step in spec.steps:
        there = {task.state for task in story.of(step.name)}
        if there:
            found[step.name] = next((state for state in ("failed", "stopped", "running", "succeeded") if state in there), "skipped")
    return found


def _parameters(spec: Spec) -> str:
    rows = [(name, _value(entry)) for name, entry in sorted(spec.params.items())]
    return _table(("name", "value"), rows) if rows else ""


def _value(entry: Json) -> str:
    if not isinstance(entry, dict):
        return ""
    entry = preview.shown(entry)
    shown = json.dumps(entry["json"], ensure_ascii=False) if "json" in entry else str(entry.get("repr", ""))
    return shown if len(shown) <= 500 else f"{shown[:500]}…"


def _steps(spec: Spec, story: Story) -> str:
    return _table(("step", "state", "tasks", "time"), [_step(step, story.of(step.name)) for step in spec.steps])


def _step(step: Step, tasks: list[Task]) -> tuple[str, str, str, str]:
    counts = Counter(task.state for task in tasks)
    cached = sum(task.cached for task in tasks)
    order = [*(state for state in ("succeeded", "failed", "running", "skipped", "stopped") if counts[state])]
    states = [f"{counts[state]} {state}" if len(tasks) > 1 else state for state in order]
    states += [f"{cached} cached" if len(tasks) > 1 else "cached"] if cached else []
    began = [task.began for task in tasks if task.began is not None]
    ended = [task.ended for task in tasks if task.ended is not None]
    took = _seconds(max(ended) - min(began)) if began and ended else ""
    return step.name, ", ".join(states) or "not run", str(len(tasks)) if step.scope else "", took


def _table(names: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(f'<td><bdi>{escape(cell)}</bdi></td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _errors(story: Story) -> str:
    failed = [task for task in story.tasks if task.state == "failed"]
    shown = "".join(_error(task) for task in failed[:ERRORS])
    more = f'<p class="dim">{len(failed) - ERRORS:,} more tasks failed</p>' if len(failed) > ERRORS else ""
    return shown + more


def _error(task: Task) -> str:
    error = task.error if isinstance(task.error, dict) else {}
    said = {name: str(error[name]) for name in ("type", "reason", "message", "item", "traceback", "output_tail") if error.get(name)}
    what = ": ".join(filter(None, [said.get("type") or said.get("reason"), said.get("message")])) or "failed"
    item = f" (item {said['item'][:200]})" if "item" in said and preview.mode() == preview.FULL else ""
    text = html.ESCAPES.sub("", said.get("traceback", "")[-TRACEBACK:])
    output = (
        f"<details><summary>its last output</summary><pre>{escape(html.ESCAPES.sub('', said['output_tail']))}</pre></details>"
        if "output_tail" in said
        else ""
    )
    body = f"<pre>{escape(text)}</pre>" if text else ""
    title = escape(f"{task.name}{item}: {what[:1_000]}")
    return f'<details open><summary class="bad"><bdi>{title}</bdi></summary>{body}{output}</details>'


# ---- cards -----------------------------------------------------------------------------------------------------------


def _cards(spec: Spec, story: Story, store: Store, lost: bool) -> str:
    blocks: list[str] = []
    left_out, room = 0, MOST_CHARS
    for step in spec.steps:
        tasks = sorted(story.of(step.name), key=lambda task: (task.state != "failed", task.index))
        for task in tasks[:TASKS_OF_A_STEP]:
            for card in cards_of(store, spec.flow, task, lost):
                drawn = html.fragment(card)
                if len(drawn) > room:
                    left_out += 1
                    continue
                room -= len(drawn)
                opened = " open" if len(blocks) < OPEN else ""
                blocks.append(f"<details{opened}><summary><bdi>{escape(task.name)}</bdi></summary>{drawn}</details>")
        if len(tasks) > TASKS_OF_A_STEP:
            blocks.append(f'<p class="dim">cards of {len(tasks) - TASKS_OF_A_STEP:,} more tasks of {escape(step.name)} are left out</p>')
    if left_out:
        blocks.append(f'<p class="dim">{left_out:,} cards are left out: the page would be too large</p>')
    return "".join(blocks)


def _run_card(spec: Spec, story: Story, store: Store, lost: bool) -> str:
    """What the tasks put on the card of the run."""
    order = {step.name: i for i, step in enumerate(spec.steps)}
    tasks = sorted(story.tasks, key=lambda task: (order.get(task.step, 0), task.index))
    parts = ((task.name, card) for task in tasks for card in cards_of(store, spec.flow, task, lost, of_run=True))
    found = whole.card(parts, spec.flow, spec.run, story.state or ("failed" if lost else "running"))
    return html.fragment(found) if found is not None else ""


def cards_of(store: Store, flow: str, task: Task, lost: bool = False, *, of_run: bool = False) -> Iterator[Json]:
    """The cards of a task's last attempt, as they last were; of one that was killed with its error. `of_run`: its part of the run's."""
    run, index, attempt = task.where
    for key in whole.keys(store, (flow, run, task.step, index, attempt), of_run):
        card = wire.read(store.get(key))
        yield card if of_run else wire.settled(card, task.last, task.error, lost=lost)
