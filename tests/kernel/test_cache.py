"""The cache as the one who edits a notebook meets it: each body notes that it ran, so reuse is seen and not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kernel.conftest import Notebook

NOTE = "open('ran', 'a').write('{} ')\n"


def ran(book: Notebook) -> list[str]:
    """What ran since the last look."""
    path = book.folder / "ran"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(found)


def define(book: Notebook, scale: int = 2, rates: str = "[1, 2]", body: str = "score = scale * lr") -> None:
    book.ok(f"scale = {scale}")
    book.ok(f"%%flowstep start\n{NOTE.format('start')}rates = {rates}")
    book.ok(f'%%flowstep train --foreach "lr in rates"\n{NOTE.format("train")}{body}')
    book.ok(f"%%flowstep pick --join train\n{NOTE.format('pick')}best = max(t.score for t in train)")


def test_an_edited_notebook_runs_only_what_changed_and_says_why(book: Notebook) -> None:
    define(book)
    book.ok("%flow run")
    assert ran(book) == ["pick", "start", "train", "train"]

    shown = book.ok("%flow run").text
    assert ran(book) == [] and "from run 1" in shown and "cached" in shown

    define(book, body="# a comment\nscore = (scale *\n  lr)")
    book.ok("%flow run")
    assert ran(book) == []  # formatting does not count

    define(book, rates="[0, 1, 2]")
    shown = book.ok("%flow run").text
    assert ran(book) == ["pick", "start", "train"]  # of the sweep only the new point
    assert "code changed since run 3" in shown

    define(book, scale=3, rates="[0, 1, 2]")
    shown = book.ok("%flow run").text
    assert ran(book) == ["pick", "train", "train", "train"] and "`scale` changed since run 4" in shown
    assert book.value("best") == "6"


def test_a_change_that_leads_to_the_same_value_goes_no_further(book: Notebook) -> None:
    define(book)
    book.ok("%flow run")
    ran(book)

    define(book, rates="list(range(1, 3))")
    book.ok("%flow run")

    assert ran(book) == ["start"]


def test_fresh_no_cache_cache_key_and_cache_for(book: Notebook) -> None:
    book.ok(f"%%flowstep a\n{NOTE.format('a')}x = 1")
    book.ok(f"%%flowstep b --no-cache\n{NOTE.format('b')}y = x")
    book.ok(f"%%flowstep c --cache-key day\n{NOTE.format('c')}z = 1")
    book.ok(f"%%flowstep d --cache-for 1h\n{NOTE.format('d')}w = 1")
    book.ok("day = 1")
    book.ok("%flow run")
    ran(book)

    book.ok("%flow run")
    assert ran(book) == ["b"]
    book.ok("day = 2\n%flow run")
    assert ran(book) == ["b", "c"]
    book.ok("run = flow.run(fresh=True)")
    assert ran(book) == ["a", "b", "c", "d"]
    book.ok("%flow run --fresh")
    assert ran(book) == ["a", "b", "c", "d"]


def test_a_file_and_a_variable_that_a_cell_names_count(book: Notebook) -> None:
    (book.folder / "data.csv").write_text("1")
    book.ok(f"%%flowstep a\n{NOTE.format('a')}text = open('data.csv').read()")
    book.ok("import os\nos.environ['MODE'] = 'x'")
    book.ok(f"%%flowstep b\n{NOTE.format('b')}import os\nmode = os.environ['MODE']")
    book.ok("%flow run")
    ran(book)

    (book.folder / "data.csv").write_text("22")
    shown = book.ok("%flow run").text
    assert ran(book) == ["a"] and "file data.csv changed" in shown and book.value("text") == "'22'"
    book.ok("os.environ['MODE'] = 'y'\n%flow run")
    assert ran(book) == ["b"] and book.value("mode") == "'y'"


def test_a_new_kernel_takes_results_but_not_of_steps_that_read_nothing(tmp_path: Path) -> None:
    ran_in = []
    for _ in range(2):
        book = Notebook(tmp_path)
        try:
            book.ok("%load_ext flowbook")
            define(book)
            book.ok("%flow run")
            ran_in.append(ran(book))
            assert book.value("best") == "4"
        finally:
            book.close()

    assert ran_in == [["pick", "start", "train", "train"], ["start"]]


def test_a_function_behind_a_function_a_class_and_a_module_count(book: Notebook) -> None:
    (book.folder / "helper.py").write_text("def half(x):\n    return x / 2\n")
    book.ok(
        "import helper\nclass Unit:\n    name = 'm'\ndef inner(x):\n    return helper.half(x)\ndef outer(x):\n    return inner(x), Unit.name"
    )
    book.ok(f"%%flowstep a\n{NOTE.format('a')}value = outer(4)")
    book.ok("%flow run")
    assert ran(book) == ["a"] and book.value("value") == "(2.0, 'm')"

    book.ok("class Unit:\n    name = 'm'\ndef inner(x):\n    # the same\n    return helper.half(x)")
    book.ok("%flow run")
    assert ran(book) == []
    book.ok("class Unit:\n    name = 'km'")
    book.ok("%flow run")
    assert ran(book) == ["a"] and book.value("value") == "(2.0, 'km')"
    (book.folder / "helper.py").write_text("def half(x):\n    return x / 2 + 0\n")
    book.ok("%flow run")
    assert ran(book) == ["a"]


def test_an_item_draws_the_same_numbers_wherever_it_stands(book: Notebook) -> None:
    def draw(names: str) -> str:
        book.ok(f"%%flowstep start\nnames = {names}")
        book.ok('%%flowstep each --foreach "name in names" --no-cache\nimport random\nx = random.random()')
        book.ok("%%flowstep all_of --join each\ndrawn = {t.name: t.x for t in each}")
        book.ok("%flow run")
        return book.value("drawn['b']")

    assert draw("['a', 'b']") == draw("['new', 'a', 'b']")
    assert "equal" in book.ok("%flow check --serial").stdout


def test_a_search_in_a_loop_runs_what_is_new(book: Notebook) -> None:
    book.ok("%%flowparams\nk: int = 0")
    book.ok(f"%%flowstep prepare\n{NOTE.format('prepare')}base = 100")
    book.ok(f"%%flowstep fit\n{NOTE.format('fit')}score = base - (k - 2) ** 2")
    book.ok("scores = {}\nfor k_now in (1, 2, 3, 2):\n    run = await flow.run(k=k_now)\n    scores[k_now] = run['score']")

    assert book.value("scores") == "{1: 99, 2: 100, 3: 99}"
    assert ran(book) == ["fit", "fit", "fit", "prepare"]


def test_two_runs_at_once_share_what_is_equal(lab: Notebook) -> None:
    lab.ok("%%flowparams\nk: int = 0")
    lab.ok(f"%%flowstep slow\n{NOTE.format('slow')}import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.01)\nx = 1")
    lab.ok(f"%%flowstep own\n{NOTE.format('own')}y = x + k")
    lab.ok("one = flow.run(k=1)\ntwo = flow.run(k=2)")
    lab.ok("open('go', 'w').close()\none.wait()\ntwo.wait()")

    assert lab.value("one['y'], two['y']") == "(2, 3)"
    assert ran(lab) == ["own", "own", "slow"]


def test_an_instance_of_a_cells_class_stays_one_across_processes_cells_and_kernels(tmp_path: Path) -> None:
    unit = "class Unit:\n    def __init__(self, n):\n        self.n = n\n    def __eq__(self, other):\n        return isinstance(other, Unit) and self.n == other.n"
    for kernel in range(2):
        book = Notebook(tmp_path)
        try:
            book.ok("%load_ext flowbook")
            book.ok(unit)
            book.ok("base = Unit(1)")
            book.ok(
                f"%%flowstep make\n{NOTE.format('make')}made = [Unit(i) for i in range(3)]\nok = isinstance(base, Unit) and base == made[1]"
            )
            book.ok(f"%%flowstep use\n{NOTE.format('use')}same = all(isinstance(u, Unit) for u in made) and base in made and ok")
            book.ok("%flow run")
            book.ok(unit)  # the cell again, as people do
            assert book.value("same, all(isinstance(u, Unit) for u in made), made[1] == Unit(1)") == "(True, True, True)"
            assert ran(book) == ([] if kernel else ["make", "use"])
        finally:
            book.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--cache-key 'undefined_name + 1'", "--cache-key undefined_name + 1: NameError"),
        ("--cache-key '(i for i in [1])'", "has no form by which it could be told"),
        ("--cache-key '1 +'", "--cache-key"),
        ("--cache-for soon", "--cache-for"),
        ("--no-cache --cache-for 1h", "--no-cache"),
    ],
)
def test_bad_cache_options_are_refused_with_the_place(book: Notebook, options: str, says: str) -> None:
    cell = book.run(f"%%flowstep a {options}\nx = 1")
    text = cell.error or book.fails("%flow run")

    assert says in text and "Cell In[" in text


def test_a_path_in_a_variable_and_a_file_of_the_same_age_count(book: Notebook) -> None:
    path = book.folder / "u.csv"
    path.write_text("1")
    book.ok("DATA = 'u.csv'\ndef load(p):\n    return open(p).read()")
    book.ok("%%flowstep a\nd = load(DATA)")
    book.ok("%%flowstep b --files u.csv\nimport os\ne = open(os.path.join('.', 'u.csv')).read()")
    book.ok("%flow run")
    before = path.stat()

    path.write_text("2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    book.ok("%flow run")

    assert book.value("d, e") == "('2', '2')"


def test_a_clock_is_asked_again_by_the_next_kernel_also_by_a_step_that_captures_data(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        book = Notebook(tmp_path)
        try:
            book.ok("%load_ext flowbook")
            book.ok("M = 1")
            book.ok("%%flowstep tt\nimport time\nstamp = (M, time.time())")
            book.ok("%flow run")
            seen.append(book.value("stamp"))
        finally:
            book.close()

    assert seen[0] != seen[1]


def test_state_that_functions_keep_is_told_to_be_private_to_a_task(book: Notebook) -> None:
    book.ok("MEMO = {}\ndef memo(x):\n    MEMO[x] = 1\n    return len(MEMO)")
    book.ok('%%flowstep each --foreach "i in range(2)"\nn = memo(i)')

    assert "`MEMO` was changed in place by a function that step each" in book.ok("%flow run").text


def test_a_plain_cell_that_computes_from_an_artifact_is_told(book: Notebook) -> None:
    book.ok("%%flowstep q1\nbase = 10")
    book.ok("%flow run")
    book.ok("derived = base * 2")
    book.ok("%%flowstep q3\nfinal = derived + 1")

    for command in ("%flow check", "%flow run"):
        assert "computed from `base` of step q1" in book.ok(command).text


def test_a_submodule_that_a_plain_cell_imported_is_there(book: Notebook) -> None:
    book.ok("import xml.dom.minidom")
    book.ok("%%flowstep a\ntag = xml.dom.minidom.parseString('<a/>').documentElement.tagName")
    book.ok("%flow run")

    assert book.value("tag") == "'a'"


def test_a_table_has_the_item_and_the_scalars_of_numpy(book: Notebook) -> None:
    book.ok('%%flowstep each --foreach "p in [{1: 2}]"\nimport numpy as np\nscore, n = np.float64(0.5), np.int64(3)')
    book.ok("%flow run")

    assert book.value("list(each.table().columns)[:3]") == "['p', 'score', 'n']"
    assert book.value("each.table().score[0]") == "np.float64(0.5)"


def test_a_setup_cell_that_fails_is_not_kept_and_takes_no_options(book: Notebook) -> None:
    book.run("%%flowsetup\n1 / 0")
    assert "takes no options" in book.fails("%%flowsetup --x\ny = 1")
    book.ok("%%flowstep a\nx = 1")

    book.ok("%flow run")


def test_an_option_line_below_code_is_refused(book: Notebook) -> None:
    assert "`#| --retry 3` stands below code" in book.fails("%%flowstep a\nx = 1\n#| --retry 3\ny = 2")


def test_whos_shows_what_is_known(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")

    assert "not run" in book.ok("%whos").stdout


def test_a_plan_that_looks_into_folders_files_or_the_environment_is_evaluated_anew(book: Notebook) -> None:
    (book.folder / "data").mkdir()
    (book.folder / "data" / "a.csv").write_text("")
    book.ok("import glob, os\nos.environ['MODE'] = 'x'")
    book.ok("%%flowstep each --foreach \"f in sorted(glob.glob('data/*.csv'))\"\nname = f")
    book.ok("%%flowstep some --when \"os.environ['MODE'] == 'x'\"\nhit = 1")
    book.ok("%%flowstep names --join each\nfound = [t.name for t in each]")
    book.ok("%flow run")

    (book.folder / "data" / "b.csv").write_text("")
    book.ok("os.environ['MODE'] = 'y'\n%flow run")

    assert book.value("found") == "['data/a.csv', 'data/b.csv']"
    assert "was skipped" in book.fails("hit")


def test_what_a_setup_cell_reads_counts(book: Notebook) -> None:
    (book.folder / "cfg.txt").write_text("1")
    book.ok("%%flowparams\nn: int = 1")
    book.ok("%%flowsetup\nk = n * 10\ncfg = open('cfg.txt').read()")
    book.ok("%%flowstep a\nseen = (k, cfg)")
    book.ok("%flow run")
    (book.folder / "cfg.txt").write_text("22")
    book.ok("%flow run")
    assert book.value("seen") == "(10, '22')"

    book.ok("%flow run --n 2")
    assert book.value("seen") == "(20, '22')"


def test_a_module_that_an_earlier_step_imports_and_what_it_imports_count(book: Notebook) -> None:
    (book.folder / "h2.py").write_text("V = 1\n")
    (book.folder / "hh.py").write_text("import h2\nclass C:\n    def m(self):\n        return h2.V\ndef f():\n    return h2.V\n")
    book.ok("%%flowstep d\nimport hh\nx = 1\nc = hh.C()")
    book.ok("%%flowstep a\ny = hh.f() + x\nz = c.m()")
    book.ok("%flow run")

    (book.folder / "h2.py").write_text("V = 5\n")
    book.ok("%flow run")

    assert book.value("y, z") == "(6, 5)"


def test_instances_of_a_class_that_a_step_defines_count_by_what_the_class_says(book: Notebook) -> None:
    def define(value: int) -> None:
        book.ok(f"%%flowstep d\nclass C:\n    def m(self):\n        return {value}\nc = C()\ncs = [C(), C()]")

    define(1)
    book.ok("%%flowstep a\ny = c.m()")
    book.ok('%%flowstep each --foreach "one in cs"\nv = one.m()')
    book.ok("%%flowstep j --join each\nvs = [t.v for t in each]")
    book.ok("%flow run")
    define(2)
    book.ok("%flow run")

    assert book.value("c.m(), y, vs") == "(2, 2, [2, 2])"


def test_an_instance_brings_along_what_its_captured_class_uses(book: Notebook) -> None:
    book.ok("import math\ndef h():\n    return 3\nclass C:\n    def m(self):\n        return h(), math.floor(2.5)")
    book.ok("%%flowstep d\nc = C()")
    book.ok("%%flowstep a\ny = c.m()")
    book.ok("%flow run")

    assert book.value("y") == "(3, 2)"


def test_what_current_tells_counts(book: Notebook) -> None:
    def define(items: str) -> None:
        book.ok(f"%%flowstep start\nitems = {items}")
        book.ok('%%flowstep each --foreach "i in items"\nseen = current.index, list(current.tags)')
        book.ok("%%flowstep j --join each\nall_seen = [t.seen for t in each]")

    book.ok("%%flowstep number\nrun = current.run")
    define("['a']")
    book.ok("%flow run --tag one")
    define("['x', 'a']")
    book.ok("%flow run --tag one")
    assert book.value("all_seen, run") == "([((0,), ['one']), ((1,), ['one'])], '2')"

    book.ok("%flow run --tag two")
    assert book.value("all_seen[0][1], run") == "(['two'], '3')"


def test_another_working_folder_is_another_work(book: Notebook) -> None:
    for name, text in (("a", "1"), ("b", "2")):
        (book.folder / name).mkdir()
        (book.folder / name / "d.txt").write_text(text)
    book.ok("import os\nos.chdir('a')")
    book.ok("%%flowstep r\ntext = open('d.txt').read()")
    book.ok("%flow run")
    book.ok("os.chdir('../b')\n%flow run")

    assert book.value("text") == "'2'"


def test_a_parameter_that_looks_like_a_secret_is_refused(book: Notebook) -> None:
    book.ok("%%flowparams\napi_key: str = 'sk-abcdefghijklmnopqrstuvwxyz'")
    book.ok("%%flowstep a\nx = 1")

    assert "looks like a secret" in book.fails("%flow run")


def test_a_package_without_an_init_file_goes_along_and_counts(book: Notebook) -> None:
    (book.folder / "src" / "deep").mkdir(parents=True)
    (book.folder / "src" / "util.py").write_text("from src.deep.more import V\ndef f():\n    return V\n")
    (book.folder / "src" / "deep" / "more.py").write_text("V = 1\n")
    book.ok("%%flowstep a\nfrom src.util import f\nx = f()")
    book.ok("%flow run")
    assert book.value("x") == "1"

    (book.folder / "src" / "deep" / "more.py").write_text("V = 22\n")
    book.ok("%flow run")
    assert book.value("x") == "22"


def test_the_serial_reading_finds_results_that_were_taken_from_another_place(book: Notebook) -> None:
    for items in ("['a', 'b']", "['new', 'a', 'b']"):
        book.ok(f"%%flowstep start\nitems = {items}")
        book.ok('%%flowstep each --foreach "item in items"\nname = item * 2')
        book.ok("%%flowstep all_of --join each\nnames = [t.name for t in each]")
        book.ok("%flow run")

    assert "equal" in book.ok("%flow check --serial").stdout


def test_what_a_reused_task_printed_is_still_in_the_logs(book: Notebook) -> None:
    for items in ("['a', 'b']", "['new', 'a', 'b']"):
        book.ok(f"%%flowstep start\nitems = {items}")
        book.ok('%%flowstep each --foreach "item in items"\nprint("this is", item)')
        book.ok("%flow run")

    assert "this is b" in book.ok("%flow logs each[2]").stdout


def test_a_kept_reference_is_its_task_also_where_the_task_was_taken_over(book: Notebook) -> None:
    book.ok('%%flowstep go --foreach "c in cs"\nscore = c')
    book.ok("%%flowstep pick --join go\nbest = max(go, key=lambda t: t.score)\nfound = {t: t.score for t in go}")
    book.ok("cs = [1, 2]")
    book.ok("%flow run --wait")
    assert book.value("best == go[1], best in found, best == go[0]") == "(True, True, False)"
    book.ok("cs = [2, 0, 1]")  # the best one stands elsewhere in its list, and is not run again
    book.ok("%flow run --wait")
    assert book.value("best == go[0], found[go[2]], best.score, best in {go[1]}") == "(True, 1, 2, False)"
    assert "equal" in book.ok("%flow check --serial").stdout
