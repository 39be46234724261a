"""A card as bytes, and back. Who reads a card must not trust who wrote it: a card comes from a pod.

    CARD = {"v": 1, "id": "main", "type": "blank", "state": "running" | "succeeded" | "failed", "n": 12, "at": seconds since the epoch,
            "place": {"flow", "run", "step", "index": [2], "attempt": 0}, "components": [COMPONENT, …], "left_out": 3}
    COMPONENT = {"type": "markdown", "id": "#0", …}; FIELDS below is the whole list

`write` keeps a card within what a frame may carry. `read` takes any bytes and gives a card whose every field has its type and its bounds;
what does not fit is left out or replaced by an error component, and unknown fields are dropped. It never raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flowbook.cards import components as parts
from flowbook.cards import plain
from flowbook.cards.components import Frozen, error_fields
from flowbook.store import preview

Json = Any
Check = Callable[[Json, int], Json]  # a value and how deep components are nested → the value made safe, None to leave it out

VERSION = 1
COMPONENTS = 500  # of one card
CARD_BYTES = 6_000_000
READ_BYTES = 8_000_000  # of a card as it arrives
ID = re.compile(r"[^\x00-\x1f\x7f]{1,200}\Z")
NAME_CHARS = 200  # of a metric
STATES = ("running", "succeeded", "failed")
OF_RUN = ".run"  # name of what a task puts on the card of its run (whole.py); no card of a user's can have it, see layout.card_name


def write(head: Mapping[str, Json], entries: Iterable[tuple[str, Frozen]]) -> bytes:
    """A card from its head and its components with their ids. What does not go into CARD_BYTES is replaced by a note."""
    texts: list[str] = []
    size = left_out = 0
    for name, frozen in entries:
        body = frozen.text()
        if len(texts) >= COMPONENTS:
            left_out += 1
            continue
        if size + len(body) > CARD_BYTES or (len(body) > CARD_BYTES // 8 and size + len(body.encode("utf-8", "replace")) > CARD_BYTES):
            why = f"the card has more than {CARD_BYTES / 1e6:.0f} MB; show less, smaller images, or use several cards"
            body = Frozen(error_fields("left out", why)).text()
        size += len(body)
        texts.append(f'{{"id":{json.dumps(name)},{body[1:]}')
    about = json.dumps({"v": VERSION, **head, **({"left_out": left_out} if left_out else {})}, ensure_ascii=False)
    return f'{about[:-1]},"components":[{",".join(texts)}]}}'.encode("utf-8", "replace")


def read(data: bytes) -> dict[str, Json]:
    """A card from bytes that anybody may have written."""
    if len(data) > READ_BYTES:
        return broken(f"it has {len(data) / 1e6:.1f} MB; at most {READ_BYTES / 1e6:.0f} MB are read")
    try:
        found = json.loads(data, parse_constant=lambda name: None, parse_int=_whole, parse_float=_real)
    except (ValueError, RecursionError) as error:
        return broken(f"it is not JSON: {type(error).__name__}")
    return checked(found)


def broken(why: str) -> dict[str, Json]:
    """What is shown in place of a card that cannot be read."""
    error = {"id": "#0", **error_fields("this card cannot be read", why)}
    return {"v": VERSION, "id": "?", "type": "error", "state": "failed", "n": 0, "components": [error]}


def ended(card: Mapping[str, Json], error: Mapping[str, Json] | None) -> dict[str, Json]:
    """The last card of an attempt that ended before it could say so (killed, out of memory, out of time), for those who know it from
    the log. `card` is what `read` gave, `error` is ERROR of docs/internals.md."""
    if card.get("state") != "running":
        return dict(card)
    title = (
        f"{(error or {}).get('type') or (error or {}).get('reason') or 'Stopped'}: {(error or {}).get('message') or 'the attempt ended'}"
    )
    shown = {"id": "flowbook:error", **error_fields(title, str((error or {}).get("traceback") or (error or {}).get("message") or ""))}
    return {**card, "state": "failed", "components": [*card["components"], shown]}


# What is said of an attempt of which the log has no ERROR, by the state of its task.
_ENDS = {
    "stopped": {"type": "Stopped", "message": "the task was stopped"},
    "ready": {"type": "Lost", "message": "the attempt was lost, and the task is started again"},
    "lost": {"type": "Lost", "message": "the run is open, and nothing drives it: its engine is gone"},
}


def settled(card: Mapping[str, Json], state: str, error: Mapping[str, Json] | None, *, lost: bool = False) -> dict[str, Json]:
    """A card as it may be shown when its task is in that state (engine/state.py), with that error of its last failure; `lost`: nothing
    drives the run any more. A card says that it is running only as long as its attempt may be."""
    if lost and state in ("launched", "running"):
        state = "lost"
    if card.get("state") != "running" or state in ("launched", "running"):
        return dict(card)
    if state == "succeeded":
        return {**card, "state": "succeeded"}
    return ended(card, _ENDS.get(state, error))


def checked(card: Json) -> dict[str, Json]:
    """A card of JSON types made safe; newly made, so that what is given stays as it is."""
    if not isinstance(card, dict):
        return broken("it is not a JSON object")
    if card.get("v") != VERSION:
        return broken("it was written by another version of flowbook")
    if plain.depth(card, plain.DEPTH + 12) > plain.DEPTH + 12:
        return broken(f"it is nested more than {plain.DEPTH} deep")
    shown = card.get("components")
    shown = shown if isinstance(shown, list) else []
    left_out = max(len(shown) - COMPONENTS, 0) + (_count(card.get("left_out"), 0) or 0)
    found = {
        "v": VERSION,
        "id": _id(card.get("id"), 0) or "?",
        "type": _text(100)(card.get("type"), 0) or "?",
        "state": card.get("state") if card.get("state") in STATES else "running",
        "n": _count(card.get("n"), 0) or 0,
        "at": _number(card.get("at"), 0),
        "place": _place(card.get("place")),
        "components": [_as_allowed(_component(part, 0, f"#{i}")) for i, part in enumerate(shown[:COMPONENTS])],
        "left_out": left_out or None,
    }
    return {name: value for name, value in found.items() if value is not None}


LISTS = {"flowbook:parameters", "flowbook:artifacts"}  # ids of the default card's tables: name, type and shape, size, value


def metrics(card: Json) -> dict[str, float]:
    """The last value of each line that a card draws, as `card.metric` makes them; of any JSON, not only of a card that was checked."""
    found: dict[str, float] = {}
    components = card.get("components") if isinstance(card, dict) else None
    for part in components if isinstance(components, list) else ():
        lines = part.get("series") if isinstance(part, dict) and part.get("type") == "lines" else None
        for line in lines if isinstance(lines, list) else ():
            ys = line.get("y") if isinstance(line, dict) else None
            if isinstance(ys, list) and ys and isinstance(ys[-1], (int, float)) and not isinstance(ys[-1], bool) and math.isfinite(ys[-1]):
                found[str(line.get("name") or "value")[:NAME_CHARS]] = ys[-1]
    return found


def metrics_of(cards: Iterable[Json]) -> dict[str, float]:
    """Those of several cards."""
    return {name: value for card in cards for name, value in metrics(card).items()}


def _as_allowed(part: dict[str, Json]) -> dict[str, Json]:
    """Without the values of artifacts that the default card of an older run has, where the setting `previews` forbids them."""
    mode = preview.mode()
    if mode == preview.FULL:
        return part
    if part.get("id") in LISTS and part["type"] == "table":
        return {
            **part,
            "rows": [[*(_kind_only(cell) if mode == preview.OFF else cell for cell in row[:3]), None][:4] for row in part.get("rows", ())],
        }
    if part["type"] == "artifact" and part.get("of"):
        return {name: value for name, value in part.items() if name not in ("text", "html")} | {"text": ""}
    return part


def _kind_only(cell: Json) -> Json:
    """Without the shape: ``ndarray 3 × 4``."""
    return re.sub(r" \d+( × \d+)*\Z", "", cell) if isinstance(cell, str) else cell


def _whole(digits: str) -> int | float | None:
    return int(digits) if len(digits) <= 15 else _real(digits)


def _real(digits: str) -> float | None:
    found = float(digits) if len(digits) < 400 else math.inf
    return found if math.isfinite(found) else None


def _place(place: Json) -> dict[str, Json] | None:
    if not isinstance(place, dict):
        return None
    found: dict[str, Json] = {name: _text(200)(place.get(name), 0) for name in ("flow", "run", "step")}
    index = place.get("index")
    found["index"] = [i for i in index[:20] if _is_count(i)] if isinstance(index, list) else []
    found["attempt"] = _count(place.get("attempt"), 0) or 0
    return {name: value for name, value in found.items() if value is not None}


def _component(part: Json, depth: int, place: str | None = None) -> dict[str, Json]:
    named = {"id": _id(part.get("id"), 0) or place} if isinstance(part, dict) and place else {"id": place} if place else {}
    kind = part.get("type") if isinstance(part, dict) else None
    fields = FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        return named | error_fields("a component of an unknown type", f"type {plain.text(kind, 100)!r}")
    if depth > parts.NESTED:
        return named | error_fields("left out", f"components are nested more than {parts.NESTED} deep")
    found = {name: fields[name](part[name], depth) for name in fields if part.get(name) is not None}
    found = {name: value for name, value in found.items() if value is not None}
    missing = [name for name in NEEDED.get(str(kind), ()) if name not in found]
    if missing:
        return named | error_fields(
            f"a component of type {kind!r} cannot be shown", f"its {missing[0]} is missing or not of the right form"
        )
    return {"type": kind, **named, **found}


# ---- checks of fields ------------------------------------------------------------------------------------------------


def _text(limit: int) -> Check:
    return lambda value, depth: plain.text(value, limit) if isinstance(value, str) else None


def _number(value: Json, depth: int) -> Json:
    return None if isinstance(value, bool) or not isinstance(value, (int, float)) else plain.number(value)


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= plain.EXACT


def _count(value: Json, depth: int) -> int | None:
    return value if _is_count(value) else None


def _id(value: Json, depth: int) -> str | None:
    return value if isinstance(value, str) and ID.match(value) else None


def _true(value: Json, depth: int) -> bool | None:
    return value if isinstance(value, bool) else None


def _one_of(*known: str) -> Check:
    return lambda value, depth: value if isinstance(value, str) and value in known else None


def _matching(pattern: re.Pattern[str], limit: int) -> Check:
    return lambda value, depth: value if isinstance(value, str) and len(value) <= limit and pattern.match(value) else None


def _cell(value: Json, depth: int) -> Json:
    if isinstance(value, dict):
        return _component(value, depth + 1)
    return plain.cell(value) if not isinstance(value, list) else "…"


def _cells(value: Json, depth: int) -> Json:
    return (
        plain.text(value, parts.TITLE) if isinstance(value, str) else _cell(value, depth) if not isinstance(value, (dict, list)) else None
    )


def _rows(value: Json, depth: int) -> Json:
    if not isinstance(value, list):
        return None
    found, left = [], parts.CELLS
    for row in value[: parts.ROWS]:
        kept = row[: min(parts.COLUMNS, left)] if isinstance(row, list) else [row]
        left -= len(kept)
        found.append([_cell(cell, depth) for cell in kept])
        if left <= 0:
            break
    return found


def _headers(value: Json, depth: int) -> Json:
    return [plain.text("" if name is None else name, parts.TITLE) for name in value[: parts.COLUMNS]] if isinstance(value, list) else None


def _series(value: Json, depth: int) -> Json:
    if not isinstance(value, list):
        return None
    found = []
    for line in value[: parts.SERIES]:
        if isinstance(line, dict) and isinstance(line.get("x"), list) and isinstance(line.get("y"), list):
            size = min(len(line["x"]), len(line["y"]), 2 * parts.POINTS)
            points = [(_number(x, 0), _number(y, 0)) for x, y in zip(line["x"][:size], line["y"][:size], strict=True)]
            kept = [(x, y) for x, y in points if x is not None]
            name = line.get("name")
            shown = {"name": plain.text(name, parts.TITLE) if isinstance(name, str) else "", "x": [x for x, _ in kept]}
            found.append({**shown, "y": [y for _, y in kept], "count": _count(line.get("count"), 0) or len(kept)})
    return found


def _events(value: Json, depth: int) -> Json:
    if not isinstance(value, list):
        return None
    return [_event(event, depth) for event in value[: parts.EVENTS] if isinstance(event, dict)]


def _event(event: dict[str, Json], depth: int) -> dict[str, Json]:
    data, payloads = event.get("data"), event.get("payloads")
    found = {
        "at": _number(event.get("at"), 0),
        "theme": _one_of(*parts.EVENT_THEMES)(event.get("theme"), 0),
        "priority": _one_of(*parts.PRIORITIES)(event.get("priority"), 0),
        "data": {plain.text(k, parts.TITLE): plain.cell(v) for k, v in list(data.items())[: parts.COLUMNS]}
        if isinstance(data, dict)
        else {},
        "payloads": {plain.text(k, parts.TITLE): _component(part, depth + 1) for k, part in list(payloads.items())[:20]}
        if isinstance(payloads, dict)
        else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _free(value: Json, depth: int) -> Json:
    """Any JSON, bounded, without the names by which a careless merge in a browser is poisoned."""
    return _without(plain.plain(value), lambda key, part: key == "__proto__")


def _vega(value: Json, depth: int) -> Json:
    """A specification that loads nothing: no address but of data itself."""
    if not isinstance(value, dict):
        return None
    return _without(plain.plain(value), lambda key, part: key == "__proto__" or (key in ("url", "href") and not _is_data(part)))


def _is_data(value: Json) -> bool:
    """Whether what an image mark or a data source names is in the specification itself: data:, or a field of its data."""
    if isinstance(value, dict):
        return isinstance(value.get("field"), str) and "signal" not in value
    return isinstance(value, str) and value.startswith("data:")


def _without(value: Json, unwanted: Callable[[str, Json], bool]) -> Json:
    if isinstance(value, dict):
        return {key: _without(part, unwanted) for key, part in value.items() if not unwanted(key, part)}
    if isinstance(value, list):
        return [_without(part, unwanted) for part in value]
    return value


_LABEL = _text(parts.TITLE)
_LONG = _text(parts.TEXT)
FIELDS: dict[str, dict[str, Check]] = {
    "markdown": {"text": _LONG},
    "error": {"title": _LABEL, "text": _LONG},
    "code": {"text": _LONG, "language": _one_of("python")},
    "html": {"html": _text(parts.VEGA_BYTES), "height": _number},
    "table": {"headers": _headers, "rows": _rows, "rows_left_out": _count, "columns_left_out": _count},
    "vega": {"spec": _vega, "controls": _true},
    "lines": {"title": _LABEL, "x_label": _LABEL, "series": _series, "left_out": _LABEL},
    "image": {"src": _matching(parts.DATA_IMAGE, 2 * parts.IMAGE_BYTES), "label": _LABEL},
    "progress": {"max": _number, "value": _number, "label": _LABEL, "unit": _LABEL, "details": _LABEL},
    "value": {"title": _LABEL, "value": _cells, "subtitle": _LABEL, "change": _LABEL, "theme": _one_of(*parts.THEMES)},
    "artifact": {"name": _LABEL, "of": _LABEL, "text": _LONG, "html": _text(20_000)},
    "json": {"data": _free, "title": _LABEL, "collapsible": _true, "copy": _true, "max_height": _matching(parts.CSS_LENGTH, 20)},
    "yaml": {"data": _free, "title": _LABEL, "collapsible": _true, "copy": _true, "max_height": _matching(parts.CSS_LENGTH, 20)},
    "timeline": {"title": _LABEL, "events": _events, "count": _count, "first": _number, "finished": _true},
}
NEEDED = {
    "markdown": ("text",),
    "html": ("html",),
    "table": ("rows",),
    "vega": ("spec",),
    "lines": ("series",),
    "image": ("src",),
    "progress": ("value",),
    "timeline": ("events",),
}
