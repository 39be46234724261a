"""Step.key and its parts: what makes a step run again, and under which name it is told; what does not count."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from flowbook.errors import DefinitionError
from flowbook.kernel import capture, keys
from flowbook.kernel.session import hash_files
from flowbook.spec import options
from flowbook.spec.body import read_body
from flowbook.spec.flow import Input, Step
from flowbook.store import codec
from flowbook.store.memory import MemoryStore


class Book:
    """A notebook without a kernel: plain cells, and one step over them. Each `step` reads the names as they are now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.space: dict[str, Any] = {"__name__": "__main__"}
        self.store = MemoryStore()
        self.setup: tuple[str, ...] = ()
        self.params: dict[str, Any] = {}
        self.environ: dict[str, str] = {}
        self.life = "one"

    def cell(self, source: str) -> None:
        exec(compile(source, f"<cell {source}>", "exec"), self.space)

    def step(self, body: str, line: str = "", makers: tuple[str, ...] = (), name: str = "train") -> Step:
        _, given = options.parse_step_line(f"{name} {line}", [], label="Cell In[3]")
        asked = options.make_options(given)
        setups = [read_body(source, label="") for source in self.setup]
        setup_reads = {n for setup in setups for n in setup.reads if n in self.space}
        reads = set(read_body(body, label="").reads)
        expressions = [text for text in (asked.foreach.expr if asked.foreach else None, asked.when) if text]
        planned = {n for text in expressions for n in read_body(text, label="", expression=True).reads}
        captured = capture.capture(
            (reads | planned | setup_reads) & set(self.space),
            self.space,
            {},
            self.store,
            skip=lambda n: n in self.params,
            origin=lambda n: "",
            label=lambda n: None,
            readers=lambda n: "",
        )
        imports = read_body(body, label="").import_roots
        capture.add_modules(captured, imports, self.store)
        known = keys.Known(
            captured,
            {name: reads},
            {name: imports},
            keys.Setup(self.setup, frozenset(root for setup in setups for root in setup.import_roots), frozenset(setup_reads)),
            params={n: codec.entry(self.store, n, v) for n, v in self.params.items()},
            files=hash_files(asked.files, self.folder),
            space=self.space,
            environ=self.environ,
            life=self.life,
        )
        inputs, plan_inputs = (
            tuple(Input(n, makers if n not in self.space else (), n in self.space) for n in sorted(names - set(self.params)))
            for names in (reads, planned)
        )
        step = Step(name, body, "<flowstep>", "Cell In[3]", asked, inputs=inputs, plan_inputs=plan_inputs)
        return keys.keyed([step], known)[0]


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Book:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Book(tmp_path)


def changed(before: Step, after: Step) -> set[str]:
    """Names of the parts that differ; the keys differ exactly if there are any."""
    names = {n for n in before.parts.keys() | after.parts.keys() if before.parts.get(n) != after.parts.get(n)}
    assert (before.key != after.key) == bool(names)
    return names


def test_layout_and_comments_do_not_count(book: Book) -> None:
    book.cell("def half(x):\n    return x / 2\n")
    before = book.step("y = half(3)")
    book.cell("# the half of it\n\ndef half(\n    x,\n):\n    # divides\n    return x / 2  # by two\n")

    assert changed(before, book.step("# a comment\n\ny = half( 3 )  # and one more\n")) == set()
    assert changed(before, book.step("y = half(4)")) == {"code"}


def test_the_name_of_a_step_counts_since_its_seed_comes_from_it(book: Book) -> None:
    assert book.step("x = 1").key != book.step("x = 1", name="other").key


@pytest.mark.parametrize("line", ["--cpu 2", "--memory 4GB", "--gpu 1", "--retry 3", "--timeout 2h", "--run", "--no-cache"])
def test_what_changes_no_result_does_not_count(book: Book, line: str) -> None:
    assert changed(book.step("x = 1"), book.step("x = 1", line)) == set()


@pytest.mark.parametrize("line", ["--catch error", "--out x", "--out +y", "--join other", "--always", "--after other"])
def test_options_that_change_what_is_saved_or_read_count(book: Book, line: str) -> None:
    assert "options" in changed(book.step("x = 1"), book.step("x = 1", line))


def test_a_fan_out_over_other_items_keeps_the_key_of_its_tasks(book: Book) -> None:
    book.cell("rates = [1, 2]")
    before = book.step("y = rate + len(rates)", '--foreach "rate in rates"')
    after = book.step("y = rate + len(rates)", '--foreach "rate in rates[:1]"')

    assert changed(before, after) == set() and before.plan_key != after.plan_key
    assert changed(before, book.step("y = rate + len(rates)", '--foreach "(rate, n) in rates"')) == {"options"}


@pytest.mark.parametrize(
    ("cells", "again", "parts"),
    [
        ("alpha = 1", "alpha = 2", {"`alpha`"}),
        ("alpha = 1", "alpha = 1.0", {"`alpha`"}),
        ("alpha = {'a': [1]}", "alpha['a'].append(2)", {"`alpha`"}),
        ("def alpha(): return 1", "def alpha(): return 2", {"`alpha`"}),
        ("def alpha(x=1): return x", "def alpha(x=2): return x", {"`alpha`"}),
        ("def make(n):\n    def f(): return n\n    return f\nalpha = make(1)", "alpha = make(2)", {"`alpha`"}),
        ("alpha = lambda: 1", "alpha = lambda: 2", {"`alpha`"}),
        ("def inner(): return 1\ndef middle(): return inner()\ndef alpha(): return middle()", "def inner(): return 2", {"`inner`"}),
        ("scale = 1\ndef alpha(): return scale", "scale = 2", {"`scale`"}),
        ("class alpha:\n    size = 1\n    def f(self): pass", "class alpha:\n    size = 2\n    def f(self): pass", {"`alpha`"}),
        ("class A:\n    def f(self): return 1\nalpha = A()", "class A:\n    def f(self): return 2\nalpha = A()", {"`A`"}),
        ("class A:\n    def f(self): return 1\nalpha = A()", "alpha.x = 1", {"`alpha`"}),
    ],
)
def test_a_captured_name_counts_with_all_that_it_uses_each_under_its_own_name(book: Book, cells: str, again: str, parts: set[str]) -> None:
    book.cell(cells)
    before = book.step("y = alpha")
    book.cell(cells)
    assert changed(before, book.step("y = alpha")) == set()
    book.cell(again)

    assert changed(before, book.step("y = alpha")) == parts


def test_equal_data_is_unchanged_however_it_came_to_be(book: Book) -> None:
    book.cell("alpha = {'names': {'b', 'a', 'c'}, 'n': 12345678}")
    before = book.step("y = alpha")
    book.cell("alpha = {'names': {'c', 'b', 'a'}, 'n': int('12345678')}")

    assert changed(before, book.step("y = alpha")) == set()


def test_parameters_count_where_they_are_read(book: Book) -> None:
    book.params = {"epochs": 1, "rate": 0.1}
    before = book.step("y = epochs")
    book.params = {"epochs": 1, "rate": 0.2}
    assert changed(before, book.step("y = epochs")) == set()
    book.params = {"epochs": 2, "rate": 0.1}

    assert changed(before, book.step("y = epochs")) == {"parameter epochs"}


def test_files_count_by_content(book: Book) -> None:
    data = book.folder / "data.csv"
    data.write_text("1")
    before = book.step("y = open('data.csv').read()", "--files data.csv")
    os.utime(data, (1, 1))
    assert changed(before, book.step("y = open('data.csv').read()", "--files data.csv")) == set()
    data.write_text("2")

    assert changed(before, book.step("y = open('data.csv').read()", "--files data.csv")) == {"file data.csv"}


def test_setup_cells_count_with_what_they_capture(book: Book) -> None:
    book.cell("start = 1")
    book.setup = ("import random\nrandom.seed(start)",)
    before = book.step("x = 1")
    book.setup = ("import random\n# now\nrandom.seed(start)",)
    assert changed(before, book.step("x = 1")) == set()
    book.cell("start = 2")

    assert changed(before, book.step("x = 1")) == {"%%flowsetup"}


def test_the_environment_counts_by_the_values_that_the_kernel_has_now_and_never_shows_them(book: Book) -> None:
    book.environ = {"TOKEN": "hunter2hunter2"}
    before = book.step("x = 1", "--env TOKEN --env MODE=fast")
    assert "hunter2" not in str(before)
    book.environ = {"TOKEN": "another", "OTHER": "1"}

    assert changed(before, book.step("x = 1", "--env TOKEN --env MODE=fast")) == {"environment"}
    assert changed(before, book.step("x = 1", "--env TOKEN --env MODE=slow")) == {"environment"}


def test_a_local_module_counts_by_content_for_the_steps_that_use_it(book: Book) -> None:
    (book.folder / "deepest.py").write_text("n = 1\n")
    (book.folder / "helpers.py").write_text("import deepest\ndef f(): return deepest.n\n")
    (book.folder / "unused.py").write_text("m = 1\n")
    body, other = "import helpers\ny = helpers.f()", "import unused\ny = unused.m"
    before, before_other, before_none = book.step(body), book.step(other), book.step("x = 1")
    (book.folder / "deepest.py").write_text("n = 22\n")

    assert changed(before, book.step(body)) == {"module deepest"}
    assert changed(before_other, book.step(other)) == set() == changed(before_none, book.step("x = 1"))


def test_a_captured_function_brings_the_modules_that_it_imports_itself(book: Book) -> None:
    (book.folder / "within.py").write_text("n = 1\n")
    book.cell("def f():\n    import within\n    return within.n")
    before = book.step("y = f()")
    (book.folder / "within.py").write_text("n = 22\n")

    assert changed(before, book.step("y = f()")) == {"module within"}


def test_versions_of_installed_packages_count_and_the_standard_library_does_not(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "import json, numpy, sklearn.metrics, flowbook\ny = 1"
    before = book.step(body)
    assert {part for part in before.parts if part.startswith("module ")} == {"module numpy", "module sklearn"}
    monkeypatch.setattr(keys, "_versions", keys._Versions())
    monkeypatch.setattr(keys.importlib.metadata, "version", lambda name: "99")

    assert "module numpy" in changed(before, book.step(body))


def test_a_module_under_another_name_is_another_capture(book: Book) -> None:
    book.cell("import os.path as alpha")
    before = book.step("y = alpha")
    book.cell("import posixpath, json as alpha")

    assert changed(before, book.step("y = alpha")) == {"`alpha`"}


# ---- steps that read nothing which could be told ----


def test_a_step_that_reads_nothing_is_known_within_a_life_of_the_kernel_only(book: Book) -> None:
    book.cell("import os\ndef fetch(): return os.getpid()")
    before = book.step("y = fetch()")
    assert changed(before, book.step("y = fetch()")) == set()
    book.life = "two"

    assert changed(before, book.step("y = fetch()")) == {"life"}


@pytest.mark.parametrize("line", ["--cache-for 1h", "--cache-key 1", "--join other", "--foreach 'x in range(3)'"])
def test_a_step_of_which_it_is_said_when_it_is_old_has_no_life(book: Book, line: str) -> None:
    assert "life" in book.step("y = 1").parts and "life" not in book.step("y = 1", line).parts


def test_a_step_that_reads_something_has_no_life(book: Book) -> None:
    book.cell("url = 'http://x'")
    book.params = {"epochs": 1}
    (book.folder / "f").write_text("")

    assert "life" not in book.step("y = url").parts
    assert "life" not in book.step("y = epochs").parts
    assert "life" not in book.step("y = 1", "--files f").parts
    assert "life" not in book.step("y = xs", makers=("start",)).parts


# ---- plans ----


def test_a_plan_has_a_key_of_its_own(book: Book) -> None:
    book.cell("limit = 1\ndef some(xs): return xs[:limit]\nother = 1")
    body, line = "y = x + other", '--foreach "x in some(xs)" --when "len(xs) > 1"'
    before = book.step(body, line, makers=("start",)).plan_key
    book.cell("other = 2")
    assert book.step(f"{body} + 1", line, makers=("start",)).plan_key == before
    book.cell("limit = 2")

    assert book.step(body, line, makers=("start",)).plan_key != before
    assert book.step(body).plan_key == ""


def test_a_plan_that_reads_nothing_is_known_within_a_life_only(book: Book) -> None:
    book.cell("import glob")
    before = book.step("y = x", "--foreach \"x in glob.glob('*')\"").plan_key
    book.life = "two"

    assert book.step("y = x", "--foreach \"x in glob.glob('*')\"").plan_key != before


def test_what_only_the_plan_reads_is_nothing_to_the_tasks(book: Book) -> None:
    book.params = {"n": 1}
    book.cell("def some(xs): return xs[:n]")
    before = book.step("y = x", '--foreach "x in some(xs)"', makers=("start",))
    book.params = {"n": 2}
    after = book.step("y = x", '--foreach "x in some(xs)"', makers=("start",))

    assert changed(before, after) == set() and before.plan_key != after.plan_key


# ---- --cache-key ----


def test_a_cache_key_is_evaluated_in_the_kernel(book: Book) -> None:
    book.cell("version = ['a', 1]")
    before = book.step("y = 1", "--cache-key 'tuple(version)'")
    book.cell("version[1] = 2")

    assert changed(before, book.step("y = 1", "--cache-key 'tuple(version)'")) == {"--cache-key"}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nothing", "--cache-key nothing: NameError: name 'nothing' is not defined"),
        ("1 / 0", "--cache-key 1 / 0: ZeroDivisionError"),
        ("(i for i in [])", "a generator has no form by which it could be told from another one"),
    ],
)
def test_a_cache_key_that_gives_none_is_refused_with_cell_and_option(book: Book, expression: str, message: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        book.step("y = 1", f"--cache-key {shlex.quote(expression)}")

    assert message in str(raised.value) and "Cell In[3]" in str(raised.value)


# ---- what values of a class depend on ----


def test_the_deep_key_of_a_definition_changes_with_what_it_uses(book: Book) -> None:
    def deep() -> str:
        captured = capture.capture(
            ["A"],
            book.space,
            {},
            book.store,
            skip=lambda n: False,
            origin=lambda n: "",
            label=lambda n: None,
            readers=lambda n: "",
        )
        keys.keyed([], keys.Known(captured))
        return str(captured.names["A"]["deep"])

    book.cell("scale = 1\nclass A:\n    def f(self): return scale")
    before = deep()
    assert deep() == before
    book.cell("scale = 2")

    assert deep() != before


def test_steps_are_unchanged_if_all_above_them_are() -> None:
    a, b, c = Step("a", "", "", "", key="1"), Step("b", "", "", "", key="2", inputs=(Input("x", ("a",)),)), Step("c", "", "", "", key="3")

    assert keys.unchanged([a, b, c], [a, b, c]) == ("a", "b", "c")
    assert keys.unchanged([dataclasses.replace(a, key="9"), b, c], [a, b, c]) == ("c",)


def test_keys_of_a_typical_flow_take_no_time(book: Book) -> None:
    body = "import numpy, pandas, sklearn\ny = 1"
    book.step(body)
    captured = capture.Captured()
    steps = [Step(f"s{i}", body, "", "") for i in range(10)]
    known = keys.Known(captured, imports={s.name: ["numpy", "pandas", "sklearn"] for s in steps})
    times = []
    for _ in range(5):
        start = time.perf_counter()
        keys.keyed(steps, known)
        times.append(time.perf_counter() - start)

    assert min(times) < 0.02
