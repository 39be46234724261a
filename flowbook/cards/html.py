"""A card as static HTML: for reopened notebooks, reports, mail and pages where no script runs. Needs no network, runs no script.

`page` gives a whole document, `card_html` a part of one that brings its style along (an output of a notebook), `fragment` a part for a page
that holds STYLE. What they are given is made safe first
(wire.checked), all text is escaped, Markdown is sanitised, HTML of users stands in a frame that can do nothing; so any JSON may be drawn.
Light and dark follow the reader's system, and the colours of Jupyter where there are any.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from html import escape
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from flowbook.cards import svg, wire
from flowbook.cards.components import DATA_IMAGE

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

Json = Any
Part = dict[str, Json]

MARKDOWN = 20_000  # characters of one text that are read as Markdown; some texts take a time that grows with the square of their length
CARD_MARKDOWN = 100_000  # of all texts of a card
VEGA_ROWS = 50  # of the data of a chart that is not drawn
JSON_SHOWN = 200_000  # characters
FRAME_HEIGHT = 400  # pixels
MOST_USES = 50_000  # elements that an SVG may show by `use`, all levels multiplied
ESCAPES = re.compile(
    r"\x1b(?:\[[0-9;:?]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\|$)|[@-Z\\^_]?)"
)  # colours of a terminal, and whatever else one obeys
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
TAGS = set(
    "a b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre s samp small span "
    "strong sub summary sup table tbody td tfoot th thead tr ul var".split()
)
ATTRIBUTES = {"a": {"href", "title"}, "img": {"src", "alt", "title"}, "ol": {"start"}}
ATTRIBUTES |= {"td": {"align", "colspan", "rowspan"}, "th": {"align", "colspan", "rowspan"}}
# Of HTML of users, which stands in a frame: what shows something, and asks nobody.
PAGE_TAGS = TAGS | set(
    "abbr address article aside bdi bdo big body button canvas center cite col colgroup datalist dfn fieldset figcaption figure font footer head "
    "header hgroup html input label legend main map area menu meter nav optgroup option output progress q rp rt ruby section select strike style "
    "textarea time title tt u wbr svg g path rect circle ellipse line polyline polygon text tspan textPath defs use symbol marker clipPath mask "
    "pattern linearGradient radialGradient stop image desc metadata filter feGaussianBlur feOffset feMerge feMergeNode feFlood feBlend "
    "feColorMatrix feComposite math mi mn mo ms mtext mrow mfrac msqrt mroot msub msup msubsup munder mover mtable mtr mtd".split()
)
PAGE_ATTRIBUTES = set(
    "style class id title lang dir align valign width height colspan rowspan border cellpadding cellspacing bgcolor color size face start type "
    "value min max low high optimum checked disabled selected multiple open name for label placeholder rows cols alt href src xlink:href x y x1 y1 "
    "x2 y2 cx cy r rx ry dx dy d points transform viewBox preserveAspectRatio fill fill-opacity fill-rule stroke stroke-width stroke-dasharray "
    "stroke-linecap stroke-linejoin stroke-opacity opacity font-size font-family font-weight font-style text-anchor dominant-baseline "
    "alignment-baseline clip-path mask marker-start marker-mid marker-end offset stop-color stop-opacity gradientUnits gradientTransform "
    "patternUnits xmlns xmlns:xlink version role hidden letter-spacing visibility display rotate markerWidth markerHeight refX refY orient "
    "stdDeviation in in2 result mode values clipPathUnits maskUnits textLength lengthAdjust fx fy spreadMethod nowrap scope datetime".split()
)
_ADDRESSES = {"href", "src", "xlink:href"}
_IN_ITSELF = re.compile(r"#|data:image/(png|jpeg|gif|webp|bmp|svg\+xml)[;,]", re.IGNORECASE)

STYLE = """<style>
.fbc{--fg:var(--jp-ui-font-color1,#1c1f23);--dim:var(--jp-ui-font-color2,#5c6670);--line:var(--jp-border-color2,#d8dde3);--soft:var(--jp-layout-color2,#f4f6f8);--bad:var(--jp-error-color1,#b3261e);--good:#23743f;--warn:#8a5a00;color:var(--fg);font:14px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;max-width:960px;margin:0 0 24px;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){.fbc{--fg:var(--jp-ui-font-color1,#e6e8eb);--dim:var(--jp-ui-font-color2,#a2abb5);--line:var(--jp-border-color2,#3a4149);--soft:var(--jp-layout-color2,#22272d);--bad:var(--jp-error-color1,#ff8a80);--good:#7bd29a;--warn:#e6b450}.fbc-chart path,.fbc-chart rect,.fbc-chart circle,.fbc-legend line{filter:brightness(1.35)}}
.fbc *{unicode-bidi:isolate}.fbc>*,.fbc>figure{margin:0 0 14px}.fbc-head{display:flex;gap:8px;align-items:baseline;flex-wrap:wrap;border-bottom:1px solid var(--line);padding-bottom:4px}
.fbc-head b{font-size:15px}.fbc-dim,.fbc figcaption,.fbc-head span{color:var(--dim);font-size:12px}.fbc table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.fbc-wide{overflow-x:auto;max-width:100%}.fbc th,.fbc td{padding:3px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}.fbc th,.fbc td{overflow-wrap:break-word}.fbc th{font-weight:600;color:var(--dim)}.fbc td.n{text-align:right}
.fbc pre{margin:0;padding:8px 10px;background:var(--soft);border-radius:4px;overflow:auto;max-height:480px;font:12px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap}.fbc code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.92em}
.fbc figure figure,.fbc td figure{margin:0}.fbc blockquote{margin:6px 0;padding-left:10px;border-left:3px solid var(--line);color:var(--dim)}.fbc img{max-width:100%;height:auto}.fbc-chart{width:100%;max-width:640px;height:auto;display:block}.fbc-chart text{fill:var(--dim);font-size:11px}.fbc-grid{stroke:var(--line)}.fbc-axis{stroke:var(--dim)}
.fbc-legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;margin:4px 0 0;padding:0;font-size:12px}.fbc-error{border-left:3px solid var(--bad);padding-left:10px}.fbc-error b{color:var(--bad)}
.fbc-bar{display:flex;gap:10px;align-items:center}.fbc-bar progress{flex:0 1 280px;height:10px;min-width:60px}.fbc td .fbc-bar{white-space:nowrap}.fbc-value{display:inline-block;vertical-align:top;min-width:140px;margin:0 12px 12px 0!important;padding:8px 14px;border:1px solid var(--line);border-left-width:4px;border-radius:4px}.fbc-value div{font-size:24px;font-weight:600;line-height:1.3}
.fbc-success{border-left-color:var(--good)}.fbc-warning{border-left-color:var(--warn)}.fbc-danger,.fbc-t-error{border-left-color:var(--bad)}.fbc-bg-gradient-indigo-purple{border-left-color:#6a4cc2}
.fbc-events{list-style:none;margin:0;padding:0}.fbc-events li{padding:4px 0 4px 10px;border-left:3px solid var(--line);margin-bottom:4px}.fbc iframe{width:100%;border:1px solid var(--line);border-radius:4px;background:#fff}.fbc h1,.fbc h2,.fbc h3{line-height:1.25;margin:0 0 8px}.fbc summary{cursor:pointer}
</style>"""


_left = ContextVar("_left", default=CARD_MARKDOWN)  # of CARD_MARKDOWN, for the card that is drawn


def page(cards: Sequence[Json], title: str = "Cards") -> str:
    """One self-contained document of some cards."""
    body = "\n".join(fragment(card) for card in cards) or "<p>no cards</p>"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="referrer" content="no-referrer"><title>{escape(title)}</title>{STYLE}</head>'
        f'<body style="margin:24px auto;max-width:960px;padding:0 16px">{body}</body></html>\n'
    )


def card_html(card: Json) -> str:
    """One card as an output of a notebook: its style is its own, and changes nothing else on the page."""
    return STYLE + fragment(card)


def fragment(card: Json) -> str:
    """One card, for a page that holds STYLE."""
    safe = wire.checked(card)
    _left.set(CARD_MARKDOWN)
    parts = "".join(_draw(part) for part in safe["components"])
    more = f'<p class="fbc-dim">{safe["left_out"]:,} more components are left out</p>' if safe.get("left_out") else ""
    empty = "" if parts else '<p class="fbc-dim">nothing was shown</p>'
    drawn = f'<section class="fbc">{_head(safe)}{parts}{more}{empty}</section>'
    return drawn.encode("utf-8", "replace").decode()  # half a surrogate of a user's text could not be written to a file


def _head(card: Part) -> str:
    place = card.get("place") or {}
    index = f"[{','.join(map(str, place['index']))}]" if place.get("index") else ""
    name = f"{place.get('step', '')}{index}" or card["id"]
    run = f"run {place['run']} of {place['flow']}" if place.get("run") and place.get("flow") else ""
    attempt = f"attempt {place['attempt'] + 1}" if place.get("attempt") else ""  # people count from 1
    shown = "" if card["id"] == card["type"] else f"card {card['id']}"
    about = " · ".join(escape(text) for text in (run, attempt, shown, card["state"], _clock(card.get("at"))) if text)
    return f'<div class="fbc-head"><b><bdi>{escape(name)}</bdi></b><span>{about}</span></div>'


def _clock(at: Json) -> str:
    try:
        return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if at else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _draw(part: Part) -> str:
    try:
        return DRAW[part["type"]](part)
    except Exception as error:  # a fault of ours in one component; the others are shown
        return _error({"title": f"this {part['type']} cannot be drawn", "text": f"{type(error).__name__}: {error}"})


# ---- text ------------------------------------------------------------------------------------------------------------


@functools.cache
def _reader() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def markdown(text: str) -> str:
    """Markdown as sanitised HTML: no scripts, no styles, images only as data, links that tell nothing of the reader."""
    size = min(len(text), MARKDOWN, _left.get())
    _left.set(_left.get() - size)
    rest = f"<pre>{escape(text[size:])}</pre>" if len(text) > size else ""
    return sanitised(_reader().render(text[:size])) + rest


def sanitised(html: str) -> str:
    import nh3

    return nh3.clean(
        html,
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto", "data"},
        attribute_filter=_attribute,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
        clean_content_tags={"script", "style", "iframe", "object", "noscript", "template", "math", "svg"},
    )


def _attribute(element: str, attribute: str, value: str) -> str | None:
    if attribute == "src":
        return value if DATA_IMAGE.match(value) else None
    if attribute == "href":
        return value if re.match(r"(https?://|mailto:|#)", value) else None
    return value


def _markdown(part: Part) -> str:
    return f"<div>{markdown(part['text'])}</div>"


def _error(part: Part) -> str:
    text = f"<pre>{escape(ESCAPES.sub('', part['text']))}</pre>" if part.get("text") else ""
    return f'<div class="fbc-error"><b>{escape(part.get("title") or "Error")}</b>{text}</div>'


def _code(part: Part) -> str:
    return f"<pre><code>{escape(ESCAPES.sub('', part.get('text', '')))}</code></pre>"


def _html(part: Part) -> str:
    """HTML of a user, in a frame without scripts, forms, navigation or origin, that loads nothing."""
    height = int(min(max(part.get("height") or FRAME_HEIGHT, 20), 4000))
    source = escape(framed(part["html"]), quote=True)
    return f'<iframe sandbox="" referrerpolicy="no-referrer" title="HTML of the step" height="{height}" srcdoc="{source}"></iframe>'


def framed(html: str) -> str:
    """What the frame shows: a second frame, so that the policy of the first holds for wherever a link in the second leads."""
    before = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta http-equiv="x-dns-prefetch-control" content="off">'
    inner = escape(f"{before}<style>body{{font:14px/1.5 system-ui,sans-serif}}</style>{page_of(html)}", quote=True)
    fill = "html,body{margin:0;height:100%}iframe{border:0;width:100%;height:100%;display:block;color-scheme:light}"
    frame = f'<iframe sandbox="" referrerpolicy="no-referrer" title="HTML of the step" srcdoc="{inner}"></iframe>'
    return f"{before}<style>{fill}</style>{frame}"


def page_of(html: str) -> str:
    """A user's page for a frame in which it can do nothing anyway: what would ask a network is taken out, since a policy does not cover
    all that a browser does early. Styles stay."""
    import nh3

    return _tame(
        nh3.clean(
            html,
            tags=PAGE_TAGS,
            attributes={"*": PAGE_ATTRIBUTES},
            generic_attribute_prefixes={"data-", "aria-"},
            url_schemes={"data"},
            attribute_filter=_page_attribute,
            link_rel=None,
            clean_content_tags={"script", "iframe", "object", "noscript", "template"},
        )
    )


def _page_attribute(element: str, attribute: str, value: str) -> str | None:
    return value if attribute not in _ADDRESSES or _IN_ITSELF.match(value) else None


_CSS_ADDRESS = re.compile(r"url\(\s*(?![\"']?\s*(?:data:|#)|&quot;\s*(?:data:|#))", re.IGNORECASE)


def _tame(html: str) -> str:
    """CSS without addresses but of data; an escaped one is left to the policy."""
    return _CSS_ADDRESS.sub("url(data:,", re.sub(r"@import", "@-import", html, flags=re.IGNORECASE))


# ---- tables and charts -----------------------------------------------------------------------------------------------


def _cell(value: Json, right: bool = False) -> str:
    if isinstance(value, dict):
        return f"<td>{_draw(value)}</td>"
    if isinstance(value, bool) or value is None:
        return f"<td>{'' if value is None else str(value).lower()}</td>"
    if isinstance(value, (int, float)):
        shown = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else repr(value)
        if isinstance(value, float) and (short := f"{value:.6g}") != shown:  # as in the panel; all digits on pointing there
            shown = f'<span title="{shown}">{short}</span>'
        return f'<td class="n">{shown}</td>' if right else f"<td>{shown}</td>"
    return f"<td>{escape(str(value))}</td>"


def _columns_of_numbers(rows: Sequence[Sequence[Json]]) -> set[int]:
    """Columns in which only numbers stand: these are aligned to the right."""
    found: dict[int, bool] = {}
    for row in rows:
        for i, value in enumerate(row):
            if value is not None:
                found[i] = found.get(i, True) and isinstance(value, (int, float)) and not isinstance(value, bool)
    return {i for i, numeric in found.items() if numeric}


def _table(part: Part) -> str:
    headers = "".join(f'<th scope="col">{escape(header)}</th>' for header in part.get("headers") or ())
    head = f"<thead><tr>{headers}</tr></thead>" if headers else ""
    numbers = _columns_of_numbers(part["rows"])
    rows = "".join(f"<tr>{''.join(_cell(value, i in numbers) for i, value in enumerate(row))}</tr>" for row in part["rows"])
    left = [f"{part[name]:,} more {name.split('_')[0]}" for name in ("rows_left_out", "columns_left_out") if part.get(name)]
    note = f'<div class="fbc-dim">{" and ".join(left)}</div>' if left else ""
    return f'<div class="fbc-wide"><table>{head}<tbody>{rows}</tbody></table>{note}</div>'


def _lines(part: Part) -> str:
    series = [svg.Series(line["name"], line["x"], line["y"]) for line in part["series"]]
    drawn = svg.draw(svg.Chart(series, part.get("title", ""), part.get("x_label", "")))
    last = [f"{line['name']} {_last(line['y'])}" for line in part["series"][:8]]
    caption = " · ".join(filter(None, [part.get("title", ""), *last, part.get("left_out", "")]))
    return f"<figure>{drawn or ''}<figcaption>{escape(caption)}</figcaption></figure>"


def _last(ys: Sequence[float | None]) -> str:
    return f"{ys[-1]:.5g}" if ys and ys[-1] is not None else "–"


def _vega(part: Part) -> str:
    chart = svg.from_vega(part["spec"])
    drawn = svg.draw(chart) if chart is not None else None
    if chart is not None and drawn is not None:
        return f"<figure>{drawn}<figcaption>{escape(chart.title)}</figcaption></figure>"
    rows = svg.vega_rows(part["spec"], {})
    if not rows:
        return '<p class="fbc-dim">a chart of Vega, which is drawn in the notebook only</p>'
    names = list(dict.fromkeys(name for row in rows[:VEGA_ROWS] for name in row))[:20]
    cells = [[_flat(row.get(name)) for name in names] for row in rows[:VEGA_ROWS]]
    note = '<p class="fbc-dim">a chart of Vega, which is drawn in the notebook; here is its data</p>'
    return note + _table({"headers": names, "rows": cells, "rows_left_out": max(len(rows) - VEGA_ROWS, 0)})


def _flat(value: Json) -> Json:
    return json.dumps(value)[:200] if isinstance(value, (dict, list)) else value


# ---- images, numbers, values -----------------------------------------------------------------------------------------


def _image(part: Part) -> str:
    label = escape(part.get("label", ""), quote=True)
    caption = f"<figcaption>{label}</figcaption>" if label else ""
    if part["src"].startswith("data:image/svg") and uses(base64.b64decode(part["src"].partition(",")[2] + "==")) > MOST_USES:
        return f'<p class="fbc-dim">this SVG is broken, or repeats itself so often that it would stop a browser</p>{caption}'
    return f'<figure><img src="{part["src"]}" alt="{label or "image"}">{caption}</figure>'


def uses(data: bytes) -> int:
    """How many elements a browser would draw for all `use` of an SVG, with those inside what they name; very many if that cannot be told."""
    if b"use" not in data:
        return 0
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, RecursionError):
        return 10**9
    named = {name: each for each in root.iter() if (name := each.get("id"))}
    weights: dict[ElementTree.Element, int] = {}

    def weigh(each: ElementTree.Element, path: int) -> int:
        if each in weights or path > 200:
            return weights.get(each, 10**9)
        weights[each] = 0  # while it is weighed: what names itself is not drawn
        found = 1 + sum(weigh(child, path + 1) for child in each)
        if each.tag.rpartition("}")[2] == "use":
            name = each.get("href") or each.get("{http://www.w3.org/1999/xlink}href") or ""
            target = named.get(name.removeprefix("#"))
            found += weigh(target, path + 1) if target is not None else 0
        weights[each] = min(found, 10**9)
        return weights[each]

    return weigh(root, 0)


def _progress(part: Part) -> str:
    most, value = part.get("max") or 0, part["value"]
    share = max(min(value / most, 1.0), 0.0) if most > 0 else None
    bar = f'<progress max="1" value="{share:.4f}"></progress>' if share is not None else "<progress></progress>"
    amount = f"{_amount(value)} {part.get('unit', '')}".strip() if share is None else f"{share:.0%}"
    texts = [escape(text) for text in (part.get("label", ""), amount, part.get("details", "")) if text]
    return f'<div class="fbc-bar">{bar}<span>{" · ".join(texts)}</span></div>'


def _amount(value: float) -> str:
    """A number as people read it: 1,234,567 and 0.3."""
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:,.6g}"


def _value(part: Part) -> str:
    lines = {name: escape(part.get(name, "")) for name in ("title", "subtitle", "change")}
    value = part.get("value", "")
    shown = _amount(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    above = f'<span class="fbc-dim">{lines["title"]}</span>' if lines["title"] else ""
    below = "".join(f'<span class="fbc-dim">{lines[name]}</span> ' for name in ("subtitle", "change") if lines[name])
    return f'<div class="fbc-value fbc-{part.get("theme", "default")}">{above}<div>{escape(shown)}</div>{below}</div>'


def _artifact(part: Part) -> str:
    name = f"<b>{escape(part['name'])}</b> " if part.get("name") else ""
    shown = sanitised(part["html"]) if part.get("html") else f"<pre>{escape(part.get('text', ''))}</pre>"
    return f'<div>{name}<span class="fbc-dim">{escape(part.get("of", ""))}</span><div class="fbc-wide">{shown}</div></div>'


def _data(part: Part, text: str) -> str:
    shown = text if len(text) <= JSON_SHOWN else f"{text[:JSON_SHOWN]}\n… ({len(text) - JSON_SHOWN:,} characters left out)"
    height = f' style="max-height:{part["max_height"]}"' if part.get("max_height") else ""
    title = escape(part.get("title") or part["type"].upper())
    body = f"<pre{height}>{escape(shown)}</pre>"
    return f"<details open><summary>{title}</summary>{body}</details>" if part.get("collapsible", True) else f"<div>{title}{body}</div>"


def _json(part: Part) -> str:
    return _data(part, json.dumps(part.get("data"), indent=2, ensure_ascii=False))


def _yaml(part: Part) -> str:
    data = part.get("data")
    return _data(part, data if isinstance(data, str) else "\n".join(yaml_lines(data, 0)))


_PLAIN_YAML = re.compile(r"[A-Za-z_/][A-Za-z0-9_ ./@+-]*\Z")
_YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def yaml_lines(data: Json, depth: int) -> list[str]:
    """JSON in YAML's block form, for reading. Texts that YAML would read as something else are quoted as in JSON."""
    pad = "  " * depth
    if isinstance(data, dict) and data:
        return [line for key, value in data.items() for line in _yaml_entry(f"{pad}{_yaml_scalar(key)}:", value, depth)]
    if isinstance(data, list) and data:
        return [line for value in data for line in _yaml_entry(f"{pad}-", value, depth)]
    return [pad + _yaml_scalar(data)]


def _yaml_entry(start: str, value: Json, depth: int) -> list[str]:
    if isinstance(value, (dict, list)) and value:
        return [start, *yaml_lines(value, depth + 1)]
    return [f"{start} {_yaml_scalar(value)}"]


def _yaml_scalar(value: Json) -> str:
    if isinstance(value, str) and _PLAIN_YAML.match(value) and value.strip() == value and value.lower() not in _YAML_WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)


def _timeline(part: Part) -> str:
    total = part.get("count", len(part["events"]))
    state = "finished" if part.get("finished") else ""
    about = " · ".join(filter(None, [escape(part.get("title", "")), f"{total:,} events", state]))
    return f'<div><div class="fbc-dim">{about}</div><ul class="fbc-events">{"".join(map(_event, part["events"]))}</ul></div>'


def _event(event: Part) -> str:
    data = " · ".join(f"{escape(key)}: <b>{escape(str(value))}</b>" for key, value in event["data"].items())
    strong = f" ({event['priority']})" if event.get("priority") in ("high", "critical") else ""
    parts = "".join(
        f"<details><summary>{escape(key)}</summary>{_draw(part)}</details>" for key, part in (event.get("payloads") or {}).items()
    )
    theme = event.get("theme", "default")
    kind = "fbc-t-error" if theme == "error" else f"fbc-{theme}"
    return f'<li class="{kind}"><span class="fbc-dim">{_clock(event.get("at"))}{strong}</span> {data}{parts}</li>'


DRAW: dict[str, Callable[[Part], str]] = {
    "markdown": _markdown,
    "error": _error,
    "code": _code,
    "html": _html,
    "table": _table,
    "lines": _lines,
    "vega": _vega,
    "image": _image,
    "progress": _progress,
    "value": _value,
    "artifact": _artifact,
    "json": _json,
    "yaml": _yaml,
    "timeline": _timeline,
}
