"""The status of a run under its cell: plain HTML through a `display_id`, plain text where there is no front end.

Two outputs: the status (steps, tasks, states, times), painted at most five times a second, and below it what the steps showed.
All text from a run is escaped, HTML from a run is sanitised. Where there is a run panel (panel.py), it stands above and hides the
status while it lives; the status is what lasts.
"""

from __future__ import annotations

import heapq
import html
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowbook.errors import FlowbookError, StepFailed
from flowbook.kernel.tally import POD_PHASES
from flowbook.spec.amounts import ago_text, memory_text, seconds_text
from flowbook.spec.flow import task_name
from flowbook.store import preview

if TYPE_CHECKING:
    from flowbook.kernel.panel import RunPanel
    from flowbook.kernel.session import Run, Session
    from flowbook.kernel.tally import StepTally

MIN_INTERVAL_S = 0.2
MAX_INTERVAL_S = 2.0
HIDDEN_S = 2.0  # the same while the panel is there, which hides the status in a page that can show it
PAUSE_RATIO = 20  # a painting that took 30 ms is followed by a pause of 20 times that
MAX_OUTPUT_CHARS = 20_000  # of one task's text
MAX_SHOWN_TASKS = 20  # of one step's outputs
MAX_IMAGE_CHARS = 4_000_000  # of all images of a run, base64
LARGE_BYTES = 100_000_000  # artifacts of a run above this are told unasked
MOST_COMMITS = 1_000  # a run of more tasks is not looked through for large artifacts
MOST_REQUESTS = 50  # the same where each is a request
LEAST_CPU_S = 0.05  # less is not worth a word
LEAST_PHASE_S = 0.05
DONE = ("succeeded", "failed", "skipped", "stopped")
MARK = {"succeeded": "✓", "failed": "✗", "skipped": "–", "stopped": "■", "running": "▶", "waiting": "·"}
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")

STYLE = """<style>
.flowbook{font:13px/1.5 var(--jp-ui-font-family,system-ui,sans-serif);color:var(--jp-ui-font-color1,inherit);max-width:900px;container-type:inline-size}
.flowbook .fb-head{margin:0 0 4px;font-weight:600}.flowbook .fb-head small,.flowbook .fb-dim{color:var(--jp-ui-font-color2,#666);font-weight:400}
.flowbook .fb-rows{display:grid;grid-template-columns:repeat(3,max-content) minmax(40px,1fr) max-content minmax(0,max-content);gap:1px 12px;align-items:center;font-variant-numeric:tabular-nums;overflow-x:auto}
.flowbook .fb-rows>div{display:contents}.flowbook .fb-note{overflow-wrap:anywhere}@container (max-width:700px){.flowbook .fb-rows{grid-template-columns:minmax(60px,max-content) repeat(2,max-content) minmax(24px,1fr) max-content;column-gap:8px}.flowbook .fb-rows span{overflow-wrap:anywhere}.flowbook .fb-note{grid-column:1/-1;padding-left:18px;font-size:12px}.flowbook .fb-note:empty{display:none}}
.flowbook .fb-bar{display:flex;height:8px;border-radius:2px;overflow:hidden;background:var(--jp-layout-color3,#ddd)}
.flowbook .fb-bar i{display:block;height:100%}.flowbook .fb-succeeded{background:var(--jp-success-color1,#388e3c)}.flowbook .fb-failed{background:var(--jp-error-color1,#d32f2f)}
.flowbook .fb-running{background:var(--jp-info-color1,#0097a7)}.flowbook .fb-skipped,.flowbook .fb-stopped{background:var(--jp-border-color1,#999)}
.flowbook pre{margin:2px 0 6px;padding:4px 8px;font:12px/1.4 var(--jp-code-font-family,monospace);background:var(--jp-layout-color2,rgba(128,128,128,.08));color:inherit;white-space:pre-wrap;overflow-wrap:anywhere;max-height:400px;overflow:auto}
.flowbook pre.fb-error{border-left:3px solid var(--jp-error-color1,#d32f2f)}.flowbook img{max-width:100%;background:#fff}.flowbook summary{cursor:pointer}.flowbook .fb-html{overflow:auto}
</style>"""

# Reopened without the state of its widgets, a notebook has no panel in its place, only a line that says so: it is not shown, the status is.
HIDING = (
    "<style>.jp-OutputArea:has([data-flowbook-run])>.jp-OutputArea-child>"
    ":is(.lm-Panel,.jupyter-widgets).jp-OutputArea-output:not(:has(*)){display:none}</style>"
)


def clean_text(text: str) -> str:
    """Printed text as a terminal would leave it: no colours, of a line with carriage returns only the last state."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in ANSI.sub("", text).split("\n")]
    return "\n".join(lines)


def rows(run: Run, now: float) -> list[dict[str, Any]]:
    """One row a step: name, counts by state, total, seconds, notes, and what its tasks do as long as none of them runs. What both
    drawings are made of; costs what there are steps and running tasks."""
    view, found = run.view, []
    doing = _doing(run)
    waits = _waits(run)
    for step in run.spec.steps:
        tally = view.tally.of(step.name)
        counts = dict(view.state.counts(step.name))
        running = sum(counts.get(s, 0) for s in ("launched", "running"))
        total = sum(counts.values())
        seconds = None
        if tally.begun is not None:
            ended = tally.ended if not running and tally.ended is not None else now
            seconds = ended - tally.begun
        notes = [_cached_note(tally, counts, bool(step.scope), view.ended_at or now), _ran_note(tally)]
        notes.append(f"attempt {tally.attempt + 1}" if tally.attempt else "")
        notes.append(f"{counts['backoff']} waiting to try again" if counts.get("backoff") else "")
        notes.append(f"peak {memory_text(tally.peak_mb)}" if tally.peak_mb else "")
        notes.append(f"cpu {seconds_text(tally.cpu_s)}" if tally.cpu_s and tally.cpu_s >= LEAST_CPU_S else "")
        phases = doing.get(step.name, Counter())
        notes.append(_phases_note(phases, bool(step.scope)) if running else _waited_note(tally, bool(step.scope)))
        notes += [waits.get(step.name, ""), *tally.notes]
        found.append(
            {
                "step": step,
                "counts": counts,
                "running": running,
                "total": total,
                "seconds": seconds,
                "phase": _phase(phases, running),
                "note": " · ".join(filter(None, notes)),
            }
        )
    return found


def phase_word(phase: str | None, began: Mapping[str, float]) -> str | None:
    """What a launched task does, where that can be said more exactly than "starting" and "running"."""
    if phase == "loading":
        return "importing" if "queued" in began else None  # a pod brings in its inputs as it does its packages
    return phase if phase in (*POD_PHASES, "saving") else None


def _doing(run: Run) -> dict[str, Counter[str]]:
    """Step → what so many of its tasks do."""
    view, found = run.view, dict[str, Counter[str]]()
    for task in view.state.active:
        key = (task.step, task.index, task.part)
        if word := phase_word(view.phase.get(key), view.began.get(key, {})):
            found.setdefault(task.step, Counter())[word] += 1
    return found


def _phase(phases: Counter[str], running: int) -> str | None:
    """The furthest phase, if none of the tasks runs."""
    if not running or phases.total() < running or (phases["saving"] and len(phases) > 1):
        return None
    return next((phase for phase in ("saving", *reversed(POD_PHASES)) if phases[phase]), None)


def _phases_note(phases: Counter[str], fan_out: bool) -> str:
    """``3 queued, 1 pulling``"""
    return ", ".join(f"{phases[phase]} {phase}" for phase in POD_PHASES if phases[phase]) if fan_out else ""


def _waited_note(tally: StepTally, fan_out: bool) -> str:
    """``queued 0.3 s, pulling 12 s``; of a fan-out ``at most queued …``, of each phase the longest."""
    long = [f"{phase} {seconds_text(tally.waited[phase])}" for phase in POD_PHASES if tally.waited.get(phase, 0.0) >= LEAST_PHASE_S]
    return ("at most " if fan_out and long else "") + ", ".join(long)


def _waits(run: Run) -> dict[str, str]:
    """Why pods of a step do not get on, of the first that does not; how many there are."""
    found: dict[str, list[str]] = {}
    for (step, _, _), why in run.view.why.items():
        found.setdefault(step, []).append(why)
    return {step: waiting[0] if len(waiting) == 1 else f"{len(waiting)} wait: {waiting[0]}" for step, waiting in found.items()}


def _cached_note(tally: StepTally, counts: dict[str, int], fan_out: bool, now: float) -> str:
    """``cached, 3 h ago, from run 12``; of a fan-out ``17 of 20 cached, …``."""
    if not tally.cached:
        return ""
    runs = sorted(tally.origins, key=lambda run: -tally.origins[run])
    origin = f"run {runs[0]}" if len(runs) == 1 else f"runs {runs[0]} and {runs[1]}" if len(runs) == 2 else f"{len(runs)} runs"
    ages = [ago_text(now - at) for at in (tally.newest, tally.oldest) if at is not None]
    if len(ages) == 2 and ages[0] != ages[1]:
        ages = [f"{ages[0].removesuffix(' ago')} to {ages[1]}" if ages[0] != "just now" else f"up to {ages[1]}"]
    return ", ".join([f"{tally.cached} of {sum(counts.values())} cached" if fan_out else "cached", *ages[:1], f"from {origin}"])


def _ran_note(tally: StepTally) -> str:
    """``ran: code changed since run 12``; what tasks of a fan-out say alike is said once."""
    if not tally.reasons:
        return ""
    reasons = sorted(tally.reasons, key=lambda why: -tally.reasons[why])
    if len(reasons) == 1 and tally.reasons[reasons[0]] == tally.launched:
        return f"ran: {_cause(reasons[0])}"
    more = f"; {len(reasons) - 2} other reasons" if len(reasons) > 2 else ""
    return "; ".join(f"{tally.reasons[why]} ran: {_cause(why)}" for why in reasons[:2]) + more


def _cause(why: str) -> str:
    """Without what follows from it."""
    return why.partition(", so ")[0]


def row_state(row: dict[str, Any], ended: str | None) -> str:
    counts, total = row["counts"], row["total"]
    if row["running"]:
        return "running"
    for state in ("failed", "stopped"):
        if counts.get(state):
            return state
    if total and counts.get("succeeded", 0) + counts.get("skipped", 0) == total:
        return "succeeded" if counts.get("succeeded") else "skipped"
    return "waiting" if ended is None else "not run"


def headline(run: Run, now: float) -> str:
    view = run.view
    state = view.ended or "running"
    begun = view.started_at
    took = f", {seconds_text((view.ended_at or now) - begun)}" if begun is not None else ""
    return f"{run.spec.flow} · run {run.id} · {state}{took}"


def status_text(run: Run, now: float | None = None, note: str = "") -> str:
    """The status as aligned lines; `note` is one more."""
    now = time.time() if now is None else now
    table = rows(run, now)
    width = max((len(r["step"].name) for r in table), default=0)
    lines = [headline(run, now)]
    for row in table:
        state = row_state(row, run.view.ended)
        word = row["phase"] or state
        done = sum(row["counts"].get(s, 0) for s in DONE)
        tasks = f"{done}/{row['total']}" if row["step"].scope else ""
        took = seconds_text(row["seconds"]) if row["seconds"] is not None else ""
        lines.append(f"  {MARK.get(state, '·')} {row['step'].name:<{width}}  {word:<9} {tasks:>9} {took:>10}  {row['note']}".rstrip())
    lines += [f"  ! {warning}" for warning in all_warnings(run)]
    if run.view.trouble:
        lines.append(f"  ! {run.view.trouble}")
    lines += [f"  {note}"] if note else []
    return "\n".join(lines)


def status_html(run: Run, now: float | None = None, note: str = "", below: str = "") -> str:
    """The status as HTML. `note` is one more line, `below` HTML that stands under it."""
    now = time.time() if now is None else now
    cells = []
    for row in rows(run, now):
        state = row_state(row, run.view.ended)
        word = row["phase"] or state
        total = row["total"] or 1
        parts = [("succeeded", row["counts"].get("succeeded", 0)), ("running", row["running"])]
        parts += [(s, row["counts"].get(s, 0)) for s in ("failed", "skipped", "stopped")]
        bar = "".join(f'<i class="fb-{s}" style="width:{100 * n / total:.2f}%"></i>' for s, n in parts if n)
        done = sum(row["counts"].get(s, 0) for s in DONE)
        tasks = f"{done} / {row['total']}" if row["step"].scope else ""
        failed = f", {row['counts']['failed']} failed" if row["counts"].get("failed") and row["step"].scope else ""
        took = seconds_text(row["seconds"]) if row["seconds"] is not None else ""
        cells.append(
            # Blocks and spaces, for sites that show code and take styles away: there each step is a line of words.
            f"<div><span>{MARK.get(state, '·')} {html.escape(row['step'].name)}</span> <span>{word}{failed}</span> <span>{tasks}</span> "
            f'<span class="fb-bar" role="img" aria-label="{word} {tasks}">{bar}</span> <span>{took}</span> '
            f'<span class="fb-dim fb-note">{html.escape(row["note"])}</span></div>'
        )
    lines = "".join(f"<div>⚠ {html.escape(w)}</div>" for w in [*all_warnings(run), *filter(None, [run.view.trouble])])
    lines += f'<div class="fb-dim">{html.escape(note)}</div>' if note else ""
    error = ""
    if any(run.view.state.counts(step.name).get("failed") for step in run.spec.steps):
        first = failure(run)
        text = "\n".join(p for p in (clean_text(first.traceback), f"StepFailed: {first.message}", first.advice) if p)
        error = f'<pre class="fb-error">{html.escape(text)}</pre>'
    return (
        f'{STYLE}<div class="flowbook"><div class="fb-head">{html.escape(headline(run, now))}</div>'
        f'<div class="fb-rows">{"".join(cells)}</div>{lines}{error}{below}</div>'
    )


def all_waits(run: Run) -> list[str]:
    """Of each step whose pods do not get on, why."""
    return [f"{step}{': ' if ' wait: ' in why[:20] else ' waits: '}{why}" for step, why in _waits(run).items()]


def all_notes(run: Run) -> list[str]:
    """What steps asked for and do not get, with their names."""
    found: dict[str, list[str]] = {}
    for step in run.spec.steps:
        for note in run.view.tally.of(step.name).notes:
            found.setdefault(note, []).append(step.name)
    return [f"{', '.join(steps[:3])}{', …' if len(steps) > 3 else ''}: {note}" for note, steps in found.items()]


def all_warnings(run: Run) -> list[str]:
    tally = run.view.tally
    return [*tally.warnings, *(["…"] if tally.more_warnings else [])]


# ---- outputs of steps -------------------------------------------------------------------------------------------------


def outputs(run: Run) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(task, pieces) in the order of the notebook; a piece is ("text", str) or ("display", bundle).

    Of each step the first MAX_SHOWN_TASKS tasks that showed anything; a last one without pieces, named like the step, stands for more.
    """
    view, found = run.view, []
    shown: dict[str, list[tuple[int, ...]]] = {}
    for step, index, part in {**view.output, **view.displays}:
        if part == "body":
            shown.setdefault(step, []).append(index)
    for name in (step.name for step in run.spec.steps if step.name in shown):
        for index in heapq.nsmallest(MAX_SHOWN_TASKS, shown[name]):
            pieces = _pieces(run, (name, index, "body"))
            if pieces:
                found.append((task_name(name, index), pieces))
        if len(shown[name]) > MAX_SHOWN_TASKS:
            found.append((name, []))
    return found


def _pieces(run: Run, key: tuple[str, tuple[int, ...], str]) -> list[tuple[str, Any]]:
    """What one task printed and showed, in its order."""
    view = run.view
    text, size = view.output.get(key, ("", 0))
    pieces: list[tuple[str, Any]] = []
    offset = size - len(text.encode("utf-8", "replace"))  # what was printed before the part that we have
    raw, at = text.encode("utf-8", "replace"), 0
    for frame in view.displays.get(key, ()):
        cut = min(max(frame.get("at", 0) - offset, at), len(raw))
        if cut > at:
            pieces.append(("text", raw[at:cut].decode("utf-8", "replace")))
        at = cut
        pieces.append(("display", frame.get("data") or {}))
    if at < len(raw):
        pieces.append(("text", raw[at:].decode("utf-8", "replace")))
    if offset > 0:
        told = run.command(f"logs {task_name(*key[:2])}").strip("`")
        pieces.insert(0, ("text", f"… {offset:,} bytes before this: {told}\n"))
    pieces = [(kind, clean_text(p) if kind == "text" else p) for kind, p in pieces]
    return [p for p in pieces if p[0] != "text" or p[1].strip()]


def outputs_text(run: Run) -> str:
    lines = []
    for name, pieces in outputs(run):
        lines.append(f"── {name}" if pieces else f"── more tasks of {name}: %flow logs {name}{run.option}")
        for kind, piece in pieces:
            lines.append(_short(piece if kind == "text" else _plain(piece)).rstrip("\n"))
    return "\n".join(lines)


def outputs_html(run: Run) -> str:
    found = outputs(run)
    if not found:
        return ""
    budget = [MAX_IMAGE_CHARS]
    shown: dict[str, int] = {}
    blocks = []
    for name, pieces in found:
        if not pieces:
            blocks.append(f'<div class="fb-dim">… more tasks of {html.escape(name)}: %flow logs {html.escape(name + run.option)}</div>')
            continue
        step = name.partition("[")[0]
        shown[step] = shown.get(step, 0) + 1
        inner = "".join(_piece_html(kind, piece, budget) for kind, piece in pieces)
        opened = " open" if "[" not in name or shown[step] <= 3 else ""
        blocks.append(f"<details{opened}><summary>{html.escape(name)}</summary>{inner}</details>")
    return f'{STYLE}<div class="flowbook">{"".join(blocks)}</div>'


def _piece_html(kind: str, piece: Any, budget: list[int]) -> str:
    if kind == "text":
        return f"<pre>{html.escape(_short(piece))}</pre>"
    for mime in ("image/png", "image/jpeg", "image/gif"):
        if isinstance(piece.get(mime), str):
            data = re.sub(r"[^A-Za-z0-9+/=]", "", piece[mime])
            budget[0] -= len(data)
            if budget[0] < 0:
                return '<div class="fb-dim">(image left out: too many for one output)</div>'
            return f'<img src="data:{mime};base64,{data}" alt="{html.escape(_plain(piece)[:200], quote=True)}">'
    if isinstance(piece.get("image/svg+xml"), str):
        import base64

        data = base64.b64encode(piece["image/svg+xml"].encode()).decode()  # as an image, an SVG runs no script
        return f'<img src="data:image/svg+xml;base64,{data}" alt="figure">'
    if isinstance(piece.get("text/html"), str):
        return f'<div class="fb-html jp-RenderedHTMLCommon">{sanitised(piece["text/html"])}</div>'
    return f"<pre>{html.escape(_short(_plain(piece)))}</pre>"


def sanitised(text: str) -> str:
    """HTML of a run without scripts, handlers, styles that reach out, or addresses."""
    import nh3

    attributes = {"*": {"class", "border", "colspan", "rowspan", "align", "title"}}
    tags = {
        "table",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "td",
        "th",
        "caption",
        "p",
        "div",
        "span",
        "b",
        "i",
        "em",
        "strong",
        "code",
        "pre",
        "br",
        "hr",
    }
    tags |= {
        "ul",
        "ol",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "sub",
        "sup",
        "small",
        "details",
        "summary",
        "dl",
        "dt",
        "dd",
        "blockquote",
    }
    return nh3.clean(text[:1_000_000], tags=tags, attributes=attributes, clean_content_tags={"script", "style", "iframe", "object"})


def _plain(bundle: dict[str, Any]) -> str:
    text = bundle.get("text/plain", "")
    return clean_text(text if isinstance(text, str) else "".join(text))


def _short(text: str) -> str:
    if len(text) <= MAX_OUTPUT_CHARS:
        return text
    return f"{text[: MAX_OUTPUT_CHARS // 2]}\n… {len(text) - MAX_OUTPUT_CHARS:,} characters left out …\n{text[-MAX_OUTPUT_CHARS // 2 :]}"


# ---- large artifacts ----------------------------------------------------------------------------------------------------


def largest(sizes: Mapping[tuple[str, str], int], above: int = 10_000_000) -> str:
    """A line for each step whose artifacts of that name have more bytes than `above`, largest first, with a ready `--out`."""
    steps: dict[str, int] = {}
    for (step, _), size in sizes.items():
        if size > above:
            steps[step] = max(size, steps.get(step, 0))
    lines = []
    for step in sorted(steps, key=lambda step: -steps[step]):
        big = sorted((n for (s, n), size in sizes.items() if s == step and size > above), key=lambda n: -sizes[step, n])
        small = [n for (s, n), size in sizes.items() if s == step and size <= above]
        lines.append(
            f"\nlargest of {step}: "
            + ", ".join(f"{n} {memory_text(sizes[step, n] / 1e6)}" for n in big)
            + f"; to keep only the rest: --out {','.join(small) or big[-1]}"
        )
    return "".join(lines)


def large_note(session: Session, run: Run) -> str:
    """One line about the largest artifacts that an ended run made anew, if they are above 100 MB. Reads its COMMITs."""
    made = [t for t, s in run.view.state.tasks.items() if s.state == "succeeded" and s.origin is None and t.part == "body"]
    sizes: dict[tuple[str, str], int] = {}
    try:
        for task in made if len(made) <= (MOST_COMMITS if session.store.mapped else MOST_REQUESTS) else ():
            for name, entry in session.commit(run, task.step, task.index)["artifacts"].items():
                sizes[task.step, name] = sizes.get((task.step, name), 0) + (entry.get("size") or 0)
        return largest(sizes, LARGE_BYTES).strip().partition("\n")[0]
    except (FlowbookError, KeyError, TypeError, AttributeError):
        return ""  # nobody asked for it


# ---- failure ------------------------------------------------------------------------------------------------------------


def failure(run: Run) -> StepFailed:
    """What the first failure of a run says in a cell: the traceback, the item, the last output, what went on, how to go on."""
    state = run.view.state
    failed = [(t, s) for t, s in state.tasks.items() if s.state == "failed"]
    if not failed:
        return StepFailed(f"run {run.id} failed", advice=run.view.trouble or "")
    by_order = {s.name: i for i, s in enumerate(run.spec.steps)}
    ends = [s.ended_at or 0 for _, s in failed]
    first_step = failed[ends.index(min(ends))][0].step
    task, task_state = min((x for x in failed if x[0].step == first_step), key=lambda x: (by_order.get(x[0].step, 0), x[0].index))
    error: dict[str, Any] = task_state.error or {}
    name = task_name(task.step, task.index) + (" (its --foreach or --when)" if task.part == "plan" else "")
    step = run.spec.step(task.step)
    where = f" at {error['cell']}, line {error['line']}" if error.get("cell") and error.get("line") else f" ({step.label})"
    item = f", item {error['item']}" if error.get("item") and preview.mode() == preview.FULL else ""
    what = f"{error.get('type')}: {error.get('message')}" if error.get("type") else error.get("message") or error.get("reason") or "failed"
    message = f"{name} of run {run.id}{where}{item}: {what}"
    tail = clean_text(error.get("output_tail") or "").strip()
    traceback = error.get("traceback") or ""
    if tail:
        traceback += f"\nlast output of {name}:\n" + "\n".join(f"    {line}" for line in tail.splitlines()[-20:])
    return StepFailed(message, traceback, advice(run, task.step))


def advice(run: Run, step: str) -> str:
    """What went on or was not started, and how to go on."""
    parts = []
    counts = run.view.state.counts(step)
    total = sum(counts.values())
    if total > 1:
        parts.append(
            f"{counts.get('succeeded', 0)} of {total} tasks of {step} succeeded, {counts.get('failed', 0)} failed; the others are kept."
        )
    idle = [
        s.name
        for s in run.spec.steps
        if not any(
            run.view.state.counts(s.name).get(x) for x in ("succeeded", "failed", "launched", "running", "skipped", "stopped", "backoff")
        )
    ]
    if idle:
        parts.append(f"Not run: {', '.join(idle)}.")
    resume = run.command("resume")
    if total > 1:  # a correction is other code: its results may not be mixed with those of the old one
        parts.append(f"{resume} runs only what is missing; all tasks of {step}, once you have corrected its cell.")
    else:
        parts.append(f"Correct the cell and run it, then {resume} runs only what is missing.")
    parts.append(f"All output: {run.command(f'logs {step}')}.")
    return " ".join(parts)


# ---- painting -----------------------------------------------------------------------------------------------------------


class Painter:
    """Paints one run into the cell that started it, from a thread of its own, until the run has ended."""

    def __init__(self, session: Session, run: Run) -> None:
        self._session, self._run = session, run
        self._parent = getattr(session.shell.display_pub, "parent_header", None)
        self._status_id, self._outputs_id = uuid.uuid4().hex, uuid.uuid4().hex
        self._painted: tuple[int, bool] = (-1, False)
        self._last_outputs = ""
        self._pause_s = MIN_INTERVAL_S
        self._note: str | None = None
        self._old = run.view.ended is not None  # it ended before anybody looked: how large its artifacts are is no news
        self._lasting = ""
        self._lock = threading.Lock()
        self._panel_id = uuid.uuid4().hex
        self._panel = create_panel(self)

    @property
    def rich(self) -> bool:
        return hasattr(self._session.shell, "kernel")

    def start(self) -> None:
        if self._panel is not None:
            self._publish(self._panel_id, {"text/plain": ""}, update=False)  # its place, above the status
            self._panel.start()
        if self.rich:
            self._send(self._status_id, status_html(self._run), status_text(self._run), update=False)
            self._send(self._outputs_id, "", "", update=False)
        threading.Thread(target=self._loop, name="flowbook-painter", daemon=True).start()

    def _loop(self) -> None:
        changed, view = self._session.engine.changed, self._run.view
        while True:
            with changed:
                changed.wait_for(lambda: self._painted != (view.version, view.ended is not None), timeout=1.0)
                ended = view.ended is not None
            self.paint()
            if ended:
                return
            with changed:  # the pace of painting; a run that ends is painted at once
                changed.wait_for(lambda: view.ended is not None, self._pause_s)

    def paint(self) -> None:
        """Paint what is new; also called by a cell that waited, so that the last state is there when the cell ends."""
        with self._lock:
            view = self._run.view
            if view.ended is not None and self._note is None:
                self._note = "" if self._old else large_note(self._session, self._run)
                self._lasting = lasting(self._session, self._run) if self.rich else ""
            note = self._note or ""
            with self._session.engine.changed:
                version = (view.version, view.ended is not None)
                ended_before = self._painted[1]
                if ended_before and version == self._painted:
                    return
                self._painted = version
                begun = time.perf_counter()
                page, text = status_html(self._run, note=note, below=self._lasting), status_text(self._run, note=note)
                below, below_text = outputs_html(self._run), outputs_text(self._run)
                # However much there is to paint, nearly all of the time is left to the cells of the notebook.
                least_s = HIDDEN_S if self._panel is not None and self._panel.shown else MIN_INTERVAL_S
                self._pause_s = min(max(least_s, PAUSE_RATIO * (time.perf_counter() - begun)), MAX_INTERVAL_S)
            if not self.rich:
                if version[1] and not ended_before:
                    print("\n".join(p for p in (text, below_text) if p))
                return
            self._send(self._status_id, page, text)
            if below != self._last_outputs:
                self._last_outputs = below
                self._send(self._outputs_id, below, below_text)

    def _send(self, display_id: str, page: str, text: str, update: bool = True) -> None:
        if self._panel is not None and page:
            page = f'{HIDING}<div data-flowbook-run="{html.escape(self._panel.token, quote=True)}">{page}</div>'
        self._publish(display_id, {"text/html": page, "text/plain": text}, update)

    def show_panel(self, bundle: dict[str, Any]) -> None:
        """Put the panel in its place."""
        self._publish(self._panel_id, bundle, update=True)

    def follow(self, run: Run) -> None:
        """Paint another run in the same place: the one that Retry made of this one."""
        with self._lock:
            self._run, self._painted, self._note, self._old, self._lasting = run, (-1, False), None, False, ""
        threading.Thread(target=self._loop, name="flowbook-painter", daemon=True).start()

    def finish(self) -> None:
        """For a notebook that is saved when its cell ends: let the panel send its last state, too."""
        if self._panel is not None:
            self._panel.finish()

    def _publish(self, display_id: str, data: dict[str, Any], update: bool) -> None:
        publisher = self._session.shell.display_pub
        content = {"data": data, "metadata": {}, "transient": {"display_id": display_id}}
        # Sent with the header of the cell that started the run, so that it appears there whatever cell runs now.
        kind = "update_display_data" if update else "display_data"
        publisher.session.send(publisher.pub_socket, kind, content, parent=self._parent, ident=publisher.topic)


def lasting(session: Session, run: Run) -> str:
    """What stays under the status of a run that has ended: its graph and its cards."""
    from flowbook.kernel.lasting import lasting_html

    if run.view.ended == "lost":
        return ""
    return lasting_html(session.store, run, {row["step"].name: row_state(row, run.view.ended) for row in rows(run, time.time())})


def create_panel(painter: Painter) -> RunPanel | None:
    """The run panel of a painter's run; None where there is no front end for it."""
    from flowbook.kernel import panel

    return panel.create(painter._session, painter._run, painter.show_panel, painter.follow)
