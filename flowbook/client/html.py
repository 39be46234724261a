"""How the client's objects look in a notebook: small tables of what is known without loading a value. Everything is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from flowbook.client import place, times
from flowbook.errors import FlowbookError

if TYPE_CHECKING:
    from flowbook.client.objects import Artifact, Flow, Object, Run, Step, Task

ROWS = 20


def shown(found: Object) -> str:
    """The table of an object; only its name if that cannot be read."""
    draw: dict[str, Callable[[Any], str]] = {
        "Flow": _flow,
        "Run": _run,
        "Step": _step,
        "Task": _task,
        "Artifact": _artifact,
        "Metaflow": _metaflow,
    }
    head = f"<p><code>{html.escape(repr(found))}</code></p>"
    try:
        return head + draw[type(found).__name__](found)
    except (FlowbookError, KeyError) as error:
        return f"{head}<p>{html.escape(str(error))}</p>"


def artifacts(label: str, found: Sequence[Artifact]) -> str:
    rows = [(each.id, each.type, _shape(each), _size(each.size), each.preview) for each in found]
    return f"<p>{html.escape(label)}</p>{_table(('artifact', 'type', 'shape', 'size', ''), rows, len(rows))}"


def _metaflow(found: Any) -> str:
    return _table(("flow",), [(name,) for name in found._ids()])


def _flow(found: Flow) -> str:
    shown = list(islice(found._rows(place.get_namespace()), ROWS + 1))
    rows = [
        (
            run,
            "damaged" if row.damaged else row.state or "running",
            _when(times.local(row.started_at)),
            f"{row.ended_at - row.started_at:.1f} s" if row.ended_at is not None and row.started_at is not None else "",
            ", ".join(sorted(row.tags)),
        )
        for run, row in shown[:ROWS]
    ]
    more = "<p>… and older ones</p>" if len(shown) > ROWS else ""
    return _table(("run", "state", "began", "took", "tags"), rows) + more


def _run(found: Run) -> str:
    told = f"{found.state}, began {_when(found.created_at)}, {_took(found)}; tags: {', '.join(sorted(found.user_tags)) or 'none'}"
    rows = [(step.id, step.state, str(len(step)), _took(step)) for step in found.steps]
    return f"<p>{html.escape(told)}</p>{_table(('step', 'state', 'tasks', 'took'), rows)}"


def _step(found: Step) -> str:
    rows = [
        (task.id, str(task.metadata_dict.get("item", "")), task.state, _took(task), str(task.exception or ""))
        for task in found.tasks()[:ROWS]
    ]
    return _table(("task", "item", "state", "took", ""), rows, len(found))


def _task(found: Task) -> str:
    error = f"<p>{html.escape(str(found.exception))}</p>" if found.exception else ""
    return f"<p>{html.escape(found.state)}, {html.escape(_took(found))}</p>{error}{artifacts('', list(found.artifacts))}"


def _artifact(found: Artifact) -> str:
    facts = (("type", found.type), ("shape", _shape(found)), ("size", _size(found.size)), ("preview", found.preview))
    return _table(("", ""), [fact for fact in facts if fact[1]])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], total: int = 0) -> str:
    shown = list(rows)[: ROWS * 5]
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in shown)
    more = f"<p>{total - len(shown):,} more</p>" if total > len(shown) else ""
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{more}"


def _when(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S") if time else ""


def _took(found: Object) -> str:
    if type(found).__name__ == "Task" and found.origin_pathspec:
        return f"from run {found.origin_pathspec.split('/')[1]}"
    if found.created_at is None or found.finished_at is None:
        return "running" if getattr(found, "state", "") == "running" else ""
    return f"{(found.finished_at - found.created_at).total_seconds():.1f} s"


def _shape(found: Artifact) -> str:
    return "" if found.shape is None else " × ".join(f"{n:,}" for n in found.shape) + (f" {found.dtype}" if found.dtype else "")


def _size(size: int | None) -> str:
    if size is None:
        return ""
    amount = float(size)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"
