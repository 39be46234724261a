"""One cell body, read without running it: tables of Python's corners, and a property against Python itself."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowbook.spec.body import Body, ast_key, read_body


def read(source: str) -> Body:
    body = read_body(source)
    assert not body.refusals, [str(f) for f in body.refusals]
    return body


READS = [
    # source, what it reads: name → required
    ("y = x", {"x": True}),
    ("x = 1\ny = x", {}),
    ("data = data.dropna()", {"data": True}),
    ("x += 1", {"x": True}),
    ("x: int = y", {"y": True}),
    ("x: Table", {"Table": True}),
    ("from __future__ import annotations\nx: Table = 1", {}),
    ("if c:\n    x = 1\nprint(x)", {"c": True, "x": False}),
    ("if c:\n    x = 1\nelse:\n    x = 2\nprint(x)", {"c": True}),
    ("if c:\n    x = 1\nelse:\n    raise ValueError\nprint(x)", {"c": True}),
    ("for i in xs:\n    y = i\nprint(y, i)", {"xs": True, "y": False, "i": False}),
    ("for i in [1, 2]:\n    y = i\nprint(y, i)", {}),
    ("for i in range(3):\n    y = i\nprint(y)", {}),
    ("for i in range(n):\n    y = i\nprint(y)", {"n": True, "y": False}),
    ("for i in [1]:\n    if i: continue\n    y = 1\nprint(y)", {"y": False}),
    ("for i in [1]:\n    if i: break\n    y = 1\nelse:\n    y = 2\nprint(y)", {"y": False}),
    ("for i in xs:\n    y = 1\n    break\nelse:\n    y = 2\nprint(y)", {"xs": True}),
    ("for i in xs:\n    print(t)\n    t = i", {"xs": True, "t": True}),
    ("while True:\n    y = f()\n    if y: break\nprint(y)", {"f": True}),
    ("while c:\n    y = 1\nprint(y)", {"c": True, "y": False}),
    ("while (y := f()):\n    pass\nprint(y)", {"f": True}),
    ("while 1:\n    if a: break\n    y = 1\nprint(y)", {"a": True, "y": False}),
    ("try:\n    y = f()\nexcept ValueError:\n    y = 0\nprint(y)", {"f": True}),
    ("try:\n    y = f()\nexcept ValueError:\n    pass\nprint(y)", {"f": True, "y": False}),
    ("try:\n    y = f()\nexcept ValueError:\n    raise\nprint(y)", {"f": True}),
    ("try:\n    pass\nexcept E as e:\n    print(e)\nelse:\n    z = 1\nprint(z)", {"E": True, "z": False}),
    ("try:\n    y = f()\nfinally:\n    print(y)", {"f": True, "y": False}),
    ("try:\n    y = f()\nfinally:\n    z = 1\nprint(y, z)", {"f": True}),
    ("while True:\n    try:\n        break\n    finally:\n        y = 1\nprint(y)", {}),
    ("while True:\n    y = 1\n    try:\n        break\n    finally:\n        del y\nprint(y)", {}),
    ("try:\n    x\nexcept NameError:\n    x = 0", {"x": False}),
    ("with open(p) as f:\n    y = f.read()\nprint(y)", {"p": True}),
    ("with lock:\n    y = 1\nprint(y)", {"lock": True, "y": False}),
    ("with suppress(E):\n    raise E\nprint(y)", {"suppress": True, "E": True, "y": True}),
    (
        "match v:\n    case [a, *b]:\n        r = a\n    case {'k': k, **rest}:\n        r = k\n    case _:\n        r = 0\nprint(r)",
        {"v": True},
    ),
    (
        "match v:\n    case Point(x=px) if px > limit:\n        r = 1\nprint(r, px)",
        {"v": True, "Point": True, "limit": True, "r": False, "px": False},
    ),
    ("match v:\n    case config.A:\n        pass", {"v": True, "config": True}),
    ("a = (y := 1) and y\nprint(y)", {}),
    ("a = c and (y := 1)\nprint(y)", {"c": True, "y": False}),
    ("a = (y := 1) if c else (y := 2)\nprint(y)", {"c": True}),
    ("a < (y := b) < (z := 1)\nprint(y, z)", {"a": True, "b": True, "z": False}),
    ("[y for y in xs if y > t]", {"xs": True, "t": True}),
    ("[(w := y) for y in xs]\nprint(w)", {"xs": True, "w": False}),
    ("{k: v for k, v in d.items()}", {"d": True}),
    ("[a for b in bs for a in b]", {"bs": True}),
    ("[x for x in x]", {"x": True}),
    ("g = (a * i for i in xs)\na = 1", {"xs": True, "a": False}),
    ("s = sum(a * i for i in xs)\na = 1", {"xs": True, "a": True}),
    ("{1: z, (z := 3): 4}", {"z": True}),
    ("def f():\n    return a\n", {"a": True}),
    ("def f():\n    return a\na = 1", {"a": False}),
    ("a = 1\ndef f():\n    return a", {}),
    ("def f(x, *args, y=d, **kw) -> T:\n    z = x\n    return z, args, y, kw", {"d": True, "T": True}),
    ("@deco\ndef f(): pass", {"deco": True}),
    ("def outer():\n    v = 1\n    def inner():\n        nonlocal v\n        v += w\n    return inner", {"w": True}),
    ("def f():\n    global n\n    n = 1\nf()\nprint(n)", {"n": False}),
    ("def f():\n    return [q for q in qs if q in r]", {"qs": True, "r": True}),
    ("def f():\n    class A:\n        x = 1\n        y = x\n    return A", {}),
    ("def f():\n    class A:\n        x = x\n    return A", {"x": True}),
    ("def f():\n    x: Missing = 1\n    return x", {}),
    ("def f():\n    import os\n    return os.path", {}),
    ("h = lambda u, v=dv: u + w", {"dv": True, "w": True}),
    (
        "class A(Base, metaclass=M):\n    k = start\n    l = k\n    def m(self):\n        return k",
        {"Base": True, "M": True, "start": True, "k": True},
    ),
    ("class A:\n    x = x", {"x": True}),
    ("class A:\n    n = 3\n    ns = [n for i in range(n)]", {"n": True}),
    ("class A:\n    def m(self):\n        return super().m(), __class__, A", {"A": False}),  # the class body might call m
    ("def f(n):\n    return n * f(n - 1)", {}),
    ("class A:\n    name = __qualname__", {}),
    ("class A:\n    global z\n    z = 1\nprint(z)", {}),
    ("del x", {"x": True}),
    ("x = 1\ndel x", {}),
    ("x[k] = v", {"x": True, "k": True, "v": True}),
    ("a.b[c].d = 1", {"a": True, "c": True}),
    ("assert a, b", {"a": True, "b": True}),
    ("assert (y := 1)\nprint(y)", {"y": False}),
    ("raise E from c\nprint(x)", {"E": True, "c": True}),
    ("import os.path as p, numpy\np, numpy", {}),
    ("async def f():\n    async with a as b:\n        return [c async for c in b]", {"a": True}),
    ("r = await go()\nasync for i in stream:\n    pass", {"go": True, "stream": True}),
    ("async with session as s:\n    y = await s.get()\nprint(y)", {"session": True, "y": False}),
    ("f'{x!r:>{width}}'", {"x": True, "width": True}),
    ("try:\n    pass\nexcept* E as g:\n    y = 1\nprint(y)", {"E": True, "y": False}),
    ("first, *rest = xs\nprint(first, rest)", {"xs": True}),
    ("for x.attr in xs: pass", {"x": True, "xs": True}),
    ("card.metric('loss', loss)\ncurrent.seed", {"loss": True}),
    ("print(len(x)); display(x)", {"x": True}),
]


@pytest.mark.parametrize(("source", "expected"), READS)
def test_a_name_is_read_if_some_path_uses_it_before_the_body_binds_it(source: str, expected: dict[str, bool]) -> None:
    assert read(source).reads == expected


MAKES = [
    ("x = 1", {"x": True}),
    ("a, (b, *c) = v", {"a": True, "b": True, "c": True}),
    ("a = b = 1", {"a": True, "b": True}),
    ("x: int", {}),
    ("x: int = 1", {"x": True}),
    ("if c: x = 1", {"x": False}),
    ("if c: x = 1\nelse: x = 2", {"x": True}),
    ("for i in xs: y = i", {"y": False}),
    ("for i in xs: pass\ni = 0", {"i": True}),
    ("[(w := i) for i in xs]", {"w": False}),
    ("print(n := 3)", {"n": True}),
    ("match v:\n    case [a, b]: pass", {"a": False, "b": False}),
    ("match v:\n    case whole: pass", {"whole": True}),
    ("def f():\n    global n\n    n = 1", {"n": False}),
    ("class A:\n    def m(self):\n        global n\n        n = 1", {"n": False}),
    ("def f():\n    def g():\n        global n\n        n = 1", {"n": False}),
    ("x += 1", {"x": True}),
    ("x[0] = 1", {"x": True}),
    ("if c: x[0] = 1", {"x": True}),  # x is loaded whatever c says
    ("for r in rs: out[r] = 1", {"out": True}),
    ("if c:\n    x[0] = 1\nelse:\n    del x", {"x": False}),
    ("x = {}\nx[0] = 1", {"x": True}),
    ("_x = 1", {}),
    ("x = 1\ndel x", {}),
    ("if c:\n    x = 1\nx = 2\nif c: del x", {"x": False}),
    ("try:\n    x = f()\nexcept E:\n    pass", {"x": False}),
    ("try:\n    import ujson as json\nexcept ImportError:\n    json = None", {"json": True}),
    ("x = 1\nraise E", {"x": False}),
    ("while True:\n    x = 1", {"x": False}),
    ("with a as b: x = 1", {"x": False}),
    ("with open(p) as f: x = 1", {"x": True}),
    ("del x[0], y.a", {"x": True, "y": True}),
    ("def f():\n    global n\n    del n\nn = 1", {"n": False}),
]


@pytest.mark.parametrize(("source", "expected"), MAKES)
def test_artifacts_are_the_public_names_assigned_at_top_level(source: str, expected: dict[str, bool]) -> None:
    assert read(source).makes == expected


def test_names_that_are_no_artifacts_are_kept_by_kind() -> None:
    body = read(
        "import os, a.b, numpy as np\nfrom m import q as r\n"
        "def f(): pass\nclass C: pass\ndef _helper(): pass\n_x = 1\n"
        "for i, j in xs: pass\nwith cm() as h: pass\n"
        "try: pass\nexcept E as e: k = 1"
    )

    assert body.others == {
        **dict.fromkeys(("os", "a", "np", "r"), "import"),
        **dict.fromkeys(("f", "_helper"), "function"),
        "C": "class",
        "_x": "private",
        **dict.fromkeys(("i", "j"), "loop"),
        "h": "with",
    }
    assert body.certain_others == {"os", "a", "np", "r", "f", "_helper", "C", "_x"}
    assert body.imports == {"os": "os", "a": "a", "np": "numpy", "r": "m.q"}
    assert body.import_roots == {"os", "a", "numpy", "m"}
    assert body.makes == {"k": False}


def test_imports_inside_functions_count_as_packages_but_bind_nothing() -> None:
    body = read("def f():\n    import scipy.stats\n    from . import near")

    assert body.import_roots == {"scipy"}
    assert body.imports == {}


CHANGES = [
    ("x[k] = 1", {"x"}),
    ("x.a = 1", {"x"}),
    ("x += 1", {"x"}),
    ("del x[k]", {"x"}),
    ("del x.a, (y[0], z.b)", {"x", "y", "z"}),
    ("a.b[c].d += 1", {"a"}),
    ("x = []\nx[0] = 1", set()),
    ("if c: x = {}\nx[0] = 1", {"x"}),
    ("for x[0] in xs: pass", {"x"}),
    ("with f() as x.h: pass", {"x"}),
    ("a, x[0] = 1, 2", {"x"}),
    ("f(x)[0] = 1", set()),
    ("def f():\n    x[0] = 1", set()),
    ("class A:\n    x[0] = 1", {"x"}),
    ("class A:\n    x = []\n    x[0] = 1", set()),
    ("class A:\n    x += 1", set()),
    ("x += 1\ndel x", set()),
]


@pytest.mark.parametrize(("source", "expected"), CHANGES)
def test_changes_in_place_are_known_by_their_root(source: str, expected: set[str]) -> None:
    assert read(source).changes == expected


def test_a_change_is_told_from_a_binding() -> None:
    body = read("x[0] = 1\ny[0] = 1\ny = 2")

    assert body.changes == {"x", "y"}
    assert body.rebinds == {"y"}


DELETES = [
    ("del x", {"x"}),
    ("if c: del x", {"x"}),
    ("del x\nx = 1", set()),
    ("x = 1\ndel x", {"x"}),
    ("try: pass\nexcept E as e: pass", set()),
]


@pytest.mark.parametrize(("source", "expected"), DELETES)
def test_what_is_deleted_at_the_end_is_known(source: str, expected: set[str]) -> None:
    assert read(source).deletes == expected


IMMEDIATE = [
    ("y = x", {"x"}),
    ("def f(a=d):\n    return x", {"d"}),
    ("@deco\nclass A:\n    y = x\n    def m(self): return z", {"deco", "x"}),
    ("h = lambda: x", set()),
    ("max(xs, key=lambda t: t * w)", {"max", "xs", "w"}),
    ("[a * x for x in xs]", {"a", "xs"}),
    ("x = 1\nprint(x)", {"print"}),
]


@pytest.mark.parametrize(("source", "expected"), IMMEDIATE)
def test_what_a_cell_reads_while_it_runs_leaves_out_what_functions_read_later(source: str, expected: set[str]) -> None:
    assert read(source).immediate == expected


def test_the_free_names_of_each_function_and_class_are_known() -> None:
    body = read("a = 1\ndef f(x):\n    return x + a + g(b)\nh = lambda: c\nclass K(Base):\n    k = a\n    def m(self): return d, len(k)")

    assert body.deferred == {"f": {"a", "b", "g"}, "h": {"c"}, "K": {"a", "d", "k", "len"}}


def test_builtins_are_kept_apart_unless_the_body_changes_them() -> None:
    body = read("print(max(x))\nmax = 3\ninput.a = 1")

    assert body.builtin_reads == {"print", "max", "input"}
    assert body.reads == {"x": True, "input": True}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is of Python 3.12")
def test_type_parameters_and_type_aliases_are_scopes() -> None:
    body = read("type Pair[T] = tuple[T, Other]\ndef f[U: Bound](x: U) -> V: return x\nclass C[W](Base[W]):\n    y: W")

    assert {"Other", "V", "Base"} <= set(body.reads)
    assert not {"T", "U", "W"} & set(body.reads)
    assert body.others == {"Pair": "class", "f": "function", "C": "class"}


REFUSALS = [
    ("x = 1\n%time y = 2", "Cell In[7], line 2: `%time y = 2` is IPython, not Python"),
    ("!ls", "Cell In[7], line 1: `!ls` is IPython, not Python"),
    ("x = !ls 'a", "Cell In[7], line 1: `x = !ls 'a` is IPython, not Python"),
    ("x = %magic a", "Cell In[7], line 1: `x = %magic a` is IPython, not Python"),
    ("foo?", "Cell In[7], line 1: `foo?` is IPython, not Python"),
    ("a.b??", "Cell In[7], line 1: `a.b??` is IPython, not Python"),
    ("?foo", "Cell In[7], line 1: `?foo` is IPython, not Python"),
    ("if x:\n    !pip install y", "Cell In[7], line 2: `!pip install y` is IPython, not Python"),
    ("return 1", "Cell In[7], line 1: `return` outside a function"),
    ("if a:\n    return", "Cell In[7], line 2: `return` outside a function"),
    ("yield 1", "Cell In[7], line 1: `yield` outside a function"),
    ("x = [(yield)]", "Cell In[7], line 1: `yield` outside a function"),
    ("from a.b import *", "Cell In[7], line 1: `from a.b import *` hides which names the step uses"),
    ("x = input('?')", "Cell In[7], line 1: `input()` waits for the keyboard, and a step has none"),
    ("def f():\n    return input()", "Cell In[7], line 2: `input()` waits for the keyboard, and a step has none"),
    ("import getpass\np = getpass.getpass()", "Cell In[7], line 2: `getpass()` waits for the keyboard, and a step has none"),
    ("from getpass import getpass\np = getpass()", "Cell In[7], line 2: `getpass()` waits for the keyboard, and a step has none"),
    ("get_ipython().system('ls')", "Cell In[7], line 1: `get_ipython()` is not there in a step"),
    ("x = (1,\ny = ]", "Cell In[7], line 2: syntax error: closing parenthesis ']' does not match opening parenthesis '(' on line 1: y = ]"),
    ("x = 1 +", "Cell In[7], line 1: syntax error: invalid syntax: x = 1 +"),
    ("break", "Cell In[7], line 1: syntax error: 'break' outside loop: break"),
    ("nonlocal x", "Cell In[7], line 1: syntax error: nonlocal declaration not allowed at module level: nonlocal x"),
]


@pytest.mark.parametrize(("source", "expected"), REFUSALS)
def test_what_a_step_cannot_do_is_refused_with_place_and_remedy(source: str, expected: str) -> None:
    findings = read_body(source, label="Cell In[7]").refusals

    assert [str(f).split("\n")[0] for f in findings] == [expected]
    assert findings[0].remedy or "syntax error" in expected


def test_all_lines_of_ipython_are_found_at_once_with_what_else_is_wrong() -> None:
    findings = read_body("\n%time a\nx = 1\n!ls (\nreturn x\n", label="c").refusals

    assert [f.where for f in findings] == ["c, line 2", "c, line 4", "c, line 5"]


NOT_REFUSED = [
    "s = '''\n%time\n!ls\nfoo?\n'''",
    "x = (a\n     % b)",
    "def f():\n    yield 1\n    return 2",
    "g = lambda: (yield)",
    "input = 3\nprint(input)",
    "def f(input):\n    return input()",
    "def input(): return 1\nx = input()",
    "r = await go()",
    "x = 'get_ipython()'",
    "x = '\\d'",
    "",
]


@pytest.mark.parametrize("source", NOT_REFUSED)
def test_what_only_looks_like_it_is_not_refused(source: str) -> None:
    assert read_body(source).refusals == ()


@pytest.mark.parametrize("source", ["x = '\0'", "(" * 500 + ")" * 500, "x = " + "-" * 3000 + "1", "\ud800 = 1"])
def test_absurd_text_is_a_finding_never_an_exception(source: str) -> None:
    assert read_body(source).refusals


def test_a_long_sum_is_read() -> None:
    body = read("x = " + " + ".join(f"a{n}" for n in range(900)))

    assert len(body.reads) == 900


def test_an_expression_is_read_as_one() -> None:
    body = read_body(" [f(x) for x in xs if x > low] ", label="--foreach", expression=True)
    wrong = read_body("x = 1", label="Cell In[3], --when", expression=True)

    assert body.reads == {"f": True, "xs": True, "low": True}
    assert not body.last_expression
    assert str(wrong.refusals[0]).startswith("Cell In[3], --when: not an expression")


LAST = [
    ("x", True),
    ("x;", False),
    ("x  # shown; really", True),
    ("x;  # not shown", False),
    ("x = 1", False),
    ("x\n\n", True),
    ("await f()", True),
    ("';'", True),
    ("", False),
]


@pytest.mark.parametrize(("source", "expected"), LAST)
def test_a_last_expression_is_shown_unless_a_semicolon_follows(source: str, expected: bool) -> None:
    assert read(source).last_expression is expected


RANDOM = [
    ("random.random()", True, False),
    ("from random import shuffle\nshuffle(x)", True, False),
    ("random.Random(3).random()", False, False),
    ("np.random.rand(3)", True, False),
    ("import numpy.random as nr\nnr.normal()", True, False),
    ("rng = np.random.default_rng(3)\nrng.normal()", False, False),
    ("np.random.RandomState(1).rand()", False, False),
    ("np.random.seed(0)", False, True),
    ("random.seed(1); torch.manual_seed(1)", False, True),
    ("def f():\n    return numpy.random.rand()", True, False),
    ("x = 1", False, False),
]


@pytest.mark.parametrize(("source", "draws", "seeds"), RANDOM)
def test_the_use_of_global_random_generators_is_seen(source: str, draws: bool, seeds: bool) -> None:
    body = read(source)

    assert (body.calls_random, body.seeds_random) == (draws, seeds)


def test_the_line_of_a_first_use_is_kept() -> None:
    body = read("\n\ny = x\nx\ndef f():\n    return z")

    assert body.lines == {"x": 3, "z": 6}


def test_a_key_ignores_comments_and_layout_but_not_docstrings() -> None:
    assert ast_key("x=1 # a") == ast_key("\n\nx = (1)\n")
    assert ast_key("def f(): 'a'") != ast_key("def f(): 'b'")
    assert ast_key("x = 1") != ast_key("x = 2")
    assert ast_key("await f()") == ast_key("await f( )")
    assert ast_key("x = !ls") != ast_key("x = !pwd")


# ---------------------------------------------------------------------------------------- a property, against Python itself

NAMES = ["a", "b", "c", "d"]
name = st.sampled_from(NAMES)


def expressions() -> st.SearchStrategy[str]:
    leaf = name | st.sampled_from(["0", "1", "[]", "[1, 2]"])
    return st.recursive(
        leaf,
        lambda e: st.one_of(
            st.builds("({} := {})".format, name, e),
            st.builds("(0 if {} else {})".format, e, e),
            st.builds("({} and {})".format, e, e),
            st.builds("({} or {})".format, e, e),
            st.builds("[{1} for q in {0}]".format, e, leaf),
            st.builds("[(b := {0}) for q in [1]]".format, leaf),
            st.builds("list({1} for q in {0})".format, e, leaf),
            st.builds("(lambda a: {})".format, leaf),
            st.builds("(lambda: {})()".format, leaf),
            st.builds("run({})".format, e),
        ),
        max_leaves=4,
    )


def indent(block: list[str]) -> str:
    return "\n".join("    " + line for part in block for line in part.split("\n"))


def statements(depth: int, loop: bool) -> st.SearchStrategy[str]:
    e = expressions()
    simple = [
        st.builds("{} = {}".format, name, e),
        st.builds("{}, {} = {}, {}".format, name, name, e, e),
        st.builds("{} += {}".format, name, e),
        st.builds("{}[0] = {}".format, name, e),
        st.builds("{}.x = {}".format, name, e),
        st.builds("del {}".format, name),
        st.builds("print({})".format, e),
        st.builds("raise Oops({})".format, e),
        st.builds("import os as {}".format, name),
        st.builds("assert {}".format, e),
    ]
    if loop:
        simple += [st.just("break"), st.just("continue")]
    if depth == 0:
        return st.one_of(simple)
    inner = st.lists(statements(depth - 1, loop), min_size=1, max_size=3).map(indent)
    outside = st.lists(statements(depth - 1, False), min_size=1, max_size=3).map(indent)
    looped = st.lists(statements(depth - 1, True), min_size=1, max_size=3).map(indent)
    compound = [
        st.builds("if {}:\n{}\nelse:\n{}".format, e, inner, inner),
        st.builds("if {}:\n{}".format, e, inner),
        st.builds("for {} in take({}):\n{}".format, name, e, looped),
        st.builds("for {} in [1, 2]:\n{}\nelse:\n{}".format, name, looped, inner),
        st.builds("while once():\n{}\nelse:\n{}".format, looped, inner),
        st.builds("while True:\n    tick()\n{}\n    break".format, looped),
        st.builds("try:\n{}\nexcept Oops as {}:\n{}".format, inner, name, inner),
        st.builds("try:\n{}\nexcept Oops:\n{}\nelse:\n{}\nfinally:\n{}".format, inner, inner, inner, inner),
        st.builds("try:\n{}\nfinally:\n{}".format, inner, inner),
        st.builds("try:\n{}\nexcept* Oops as {}:\n{}".format, outside, name, outside).filter(
            lambda s: "break" not in s and "continue" not in s
        ),
        st.builds("with swallow() as {}:\n{}".format, name, inner),
        st.builds(
            "match {}:\n    case [{}, 2]:\n{}\n    case 0 | []:\n{}".format,
            e,
            name,
            inner.map(lambda s: indent([s])),
            inner.map(lambda s: indent([s])),
        ),
        st.builds(
            "match {}:\n    case {} if {}:\n{}\n    case _:\n{}".format,
            e,
            name,
            e,
            inner.map(lambda s: indent([s])),
            inner.map(lambda s: indent([s])),
        ),
        st.builds("class {}:\n{}".format, name, outside),
        st.builds("def {0}(a={1}):\n    if 0: yield\n{2}\nlist({0}())".format, name, e, outside).filter(lambda s: True),
        st.builds("def f():\n    global {0}\n    {0} = {1}\nrun(f())".format, name, e),
        st.builds("def f():\n    global {0}\n    del {0}\nrun(f())".format, name),
        st.builds("def f():\n    class K:\n{0}\nrun(f())".format, outside.map(lambda s: indent([s]))),
    ]
    return st.one_of(simple + compound)


programs = st.lists(statements(2, False), min_size=1, max_size=5).map("\n".join)


class Oops(Exception):
    pass


class Enough(BaseException):
    """A program runs for ever."""


class Swallow:
    def __enter__(self) -> int:
        return 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return kind is not None and issubclass(kind, Exception)


class Upstream:
    """A value from outside that can do everything the programs ask of it."""

    def __iadd__(self, other: Any) -> Upstream:
        return self

    def __iter__(self) -> Any:
        return iter([1])

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __add__(self, other: Any) -> int:
        return 1


class Space(dict[str, Any]):
    """The namespace of a cell: notes each name whose value from outside is read."""

    def __init__(self, upstream: dict[str, Any], helpers: dict[str, Any]) -> None:
        super().__init__({**upstream, **helpers})
        self.upstream = upstream
        self.stored: set[str] = set()
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if key not in self.stored and self.upstream.get(key) is value:
            self.used.add(key)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self.stored.add(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self.stored and key in self.upstream:
            self.used.add(key)
        super().__delitem__(key)


def run(source: str, provided: dict[str, Any]) -> tuple[Space, bool]:
    """Runs a program; returns its namespace and whether it ended normally."""
    calls = iter([True, True, False])
    ticks = iter(range(50))

    def tick() -> None:
        if next(ticks, None) is None:
            raise Enough

    helpers = {
        "Oops": Oops,
        "tick": tick,
        "run": lambda value: value,
        "take": lambda value: list(value)[:2] if isinstance(value, list | Upstream) else [],
        "once": lambda: next(calls, False),
        "swallow": Swallow,
        "print": lambda *values: None,
        "__builtins__": builtins,
    }
    space = Space(provided, helpers)
    try:
        exec(compile(source, "<program>", "exec", dont_inherit=True), space, space)
    except (Exception, Enough):
        return space, False
    return space, True


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(programs, st.sets(name))
def test_python_never_reads_or_binds_what_the_analysis_did_not_see(source: str, optional: set[str]) -> None:
    body = read_body(source)
    if body.refusals:
        return
    helpers = {"Oops", "run", "take", "once", "swallow", "tick"}
    everything: dict[str, Any] = {n: Upstream() for n in NAMES}
    space, _ = run(source, everything)

    assert space.used <= set(body.reads)

    provided = {n: Upstream() for n in NAMES if body.reads.get(n) or (n in body.reads and n in optional)}
    space, normal = run(source, provided)
    bound = {n for n in space if n in space.stored or (n in NAMES and space.get(n) is not provided.get(n))} - {"__builtins__"}
    if normal:
        assert bound <= set(body.makes) | set(body.others)
        assert {n for n, certain in body.makes.items() if certain} | body.certain_others <= set(space)
    assert set(body.reads) - set(NAMES) <= helpers | {"f"}
