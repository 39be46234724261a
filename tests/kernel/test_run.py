"""Steps run and their results are back by name: the main road, in a real kernel."""

from __future__ import annotations

from pathlib import Path

from tests.kernel.conftest import Notebook, until_it_waits, waits_for


def test_a_step_runs_in_another_process_and_its_value_is_back_as_the_real_object(book: Notebook) -> None:
    book.ok("import os\nhere = os.getpid()")
    book.ok("%%flowstep start\nimport os\nxs = [1, 2, 3]\npid = os.getpid()")
    book.ok("%flow run")

    assert book.value("xs, type(xs), pid != here") == "([1, 2, 3], <class 'list'>, True)"


def test_the_seed_in_cells_fans_out_joins_and_picks_the_best(book: Notebook) -> None:
    book.ok("import math\ndef score_of(lr):\n    return -abs(math.log10(lr) + 2)")
    book.ok("%%flowparams\nepochs: int = 3  # how long")
    book.ok("%%flowstep start\nlearning_rates = [0.001, 0.01, 0.1]")
    book.ok(
        '%%flowstep train --foreach "lr in learning_rates"\n#| --cpu 1 --memory 500MB\nscore = score_of(lr)\nlosses = [lr / (e + 1) for e in range(epochs)]'
    )
    line = book.ok("%%flowstep pick_best --join train\nbest = max(train, key=lambda t: t.score)\nn = len(train)").stdout
    assert "joins train" in line and "saves best, n" in line

    shown = book.ok("%flow run")

    assert "3/3" in shown.text and "succeeded" in shown.text
    assert book.value("best.lr, best.score, n") == "(0.01, 0.0, 3)" or book.value("best.lr, n") == "(0.01, 3)"
    assert (
        book.value("train[1].losses, len(train), [t.lr for t in train]") == "([0.01, 0.005, 0.0033333333333333335], 3, [0.001, 0.01, 0.1])"
    )
    assert "learning_rates" in book.ok("%flow artifacts").text


def test_nested_fan_outs_close_one_level_at_a_time(book: Notebook) -> None:
    book.ok('%%flowstep outer --foreach "a in [1, 2]"\nbase = a * 10')
    book.ok('%%flowstep inner --foreach "b in range(3)"\nvalue = base + b')
    book.ok("%%flowstep per_a --join inner\ntotal = sum(t.value for t in inner)")
    book.ok("%%flowstep end --join per_a\ngrand = [t.total for t in per_a]")
    book.ok("%flow run")

    assert book.value("grand") == "[33, 63]"
    assert book.value("inner[1,2].value, inner[0,0].b") == "(22, 0)"


def test_an_empty_fan_out_joins_to_an_empty_sequence(book: Notebook) -> None:
    book.ok('%%flowstep each --foreach "x in []"\ny = x')
    book.ok("%%flowstep gather --join each\nn = len(each)")
    book.ok("%flow run")

    assert book.value("n") == "0"


def test_when_skips_a_step_and_what_needs_only_it(book: Notebook) -> None:
    book.ok("%%flowstep start\nscore = 0.5")
    book.ok('%%flowstep good --when "score > 0.9"\nmodel = "good"')
    book.ok('%%flowstep bad --when "score <= 0.9"\nmodel = "bad"')
    book.ok("%%flowstep use\nused = model.upper()")
    shown = book.ok("%flow run")

    assert "skipped" in shown.text
    assert book.value("used, model") == "('BAD', 'bad')"


def test_captured_functions_see_artifacts_and_classes_keep_isinstance(book: Notebook) -> None:
    book.ok("class Model:\n    def __init__(self, k):\n        self.k = k\n    def predict(self, x):\n        return helper(x) * self.k")
    book.ok("def helper(x):\n    return x + offset")
    book.ok("%%flowstep start\noffset = 100")
    book.ok("%%flowstep fit\nmodel = Model(2)\nanswer = model.predict(1)\nok = isinstance(model, Model)")
    book.ok("%flow run")

    assert book.value("answer, ok, isinstance(model, Model), model.predict(1)") == "(202, True, True, 202)"


def test_changes_in_place_make_a_new_version(book: Notebook) -> None:
    book.ok("%%flowstep a\nconfig = {'lr': 1}\ncount = 1")
    book.ok("%%flowstep b\nconfig['lr'] = 2\ncount += 1")
    book.ok("%%flowstep c\nseen = (config['lr'], count)")
    book.ok("%flow run")

    assert book.value("seen, config, count") == "((2, 2), {'lr': 2}, 2)"


def test_the_comment_form_and_top_level_await_are_the_same_thing(book: Notebook) -> None:
    book.ok("#| flowstep start\n#| --retry 1\nimport asyncio\nawait asyncio.sleep(0)\nx = 5")
    book.ok("%flow run")

    assert book.value("x") == "5"


def test_parameters_come_from_the_command_line_and_from_python(book: Notebook) -> None:
    book.ok("%%flowparams\nepochs: int = 50  # number of passes\nname = 'a'")
    book.ok("%%flowstep go\nout = (epochs * 2, name)")
    book.ok("%flow run --epochs 3 --name b")
    assert book.value("out, epochs") == "((6, 'b'), 3)"

    book.ok("run = await flow.run(epochs=4)")
    assert book.value("run['out'], run.state") == "((8, 'a'), 'succeeded')"


def test_run_all_in_a_lab_needs_no_explicit_wait(lab: Notebook, tmp_path: Path) -> None:
    lab.ok(f"%%flowstep slow\n{waits_for(tmp_path / 'go')}\nx = 7")
    lab.ok("%flow run")  # it returns although the step cannot end yet
    reading = lab.start("y = x + 1\nprint(y)")
    until_it_waits(lab, "x")
    (tmp_path / "go").touch()

    assert "8" in lab.finish(reading).stdout


def test_a_function_definition_that_mentions_a_name_does_not_wait_but_its_call_does(lab: Notebook, tmp_path: Path) -> None:
    lab.ok(f"%%flowstep slow\n{waits_for(tmp_path / 'go')}\nx = 7")
    lab.ok("%flow run")
    lab.ok("def use():\n    return x + 1")
    assert "running" in lab.ok("print(flow[1].state)").stdout
    calling = lab.start("print(use())")
    until_it_waits(lab, "x")
    (tmp_path / "go").touch()

    assert "8" in lab.finish(calling).stdout


def test_interrupting_a_waiting_cell_leaves_the_run_alone(lab: Notebook, tmp_path: Path) -> None:
    lab.ok(f"%%flowstep slow\n{waits_for(tmp_path / 'go')}\nx = 7")
    lab.ok("%flow run")
    waiting = lab.start("print(x)")
    until_it_waits(lab, "x")
    lab.manager.interrupt_kernel()
    cell = lab.finish(waiting)
    assert cell.error is not None and "goes on" in cell.error
    (tmp_path / "go").touch()

    assert lab.value("x") == "7"


def test_one_step_runs_with_only_what_it_needs(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")
    book.ok("%%flowstep b\ny = x + 1")
    book.ok("%%flowstep c\nz = 5")
    shown = book.ok("%flow run b")

    assert " c " not in shown.text
    assert book.value("y") == "2"
    assert "was not run yet" in book.fails("z")


def test_output_of_steps_stands_below_the_status(book: Notebook) -> None:
    book.ok("%%flowstep talk\nprint('hello from the pod')\n{'answer': 42}")
    shown = book.ok("%flow run")
    pages = " ".join(d.get("text/html", "") for d in shown.displays.values())

    assert "hello from the pod" in pages and "&#x27;answer&#x27;: 42" in pages
    assert "hello from the pod" in book.ok("%flow logs talk").stdout


def test_autorun_runs_a_step_with_its_cell(book: Notebook) -> None:
    book.ok("%%flowstep a --run\nx = 3")

    assert book.value("x") == "3"


def test_setup_cells_run_in_the_kernel_and_in_every_task(book: Notebook) -> None:
    book.ok("%%flowsetup\nimport random\nrandom.seed(7)\nunit = 'm'")
    book.ok('%%flowstep draw --foreach "i in range(2)"\nv = random.random()\nu = unit')
    book.ok("%%flowstep end --join draw\nsame = draw[0].v == draw[1].v\nus = [t.u for t in draw]")
    book.ok("%flow run")

    assert book.value("same, us, unit") == "(True, ['m', 'm'], 'm')"


def test_always_runs_after_a_failure_and_catch_keeps_the_flow_going(book: Notebook) -> None:
    book.ok("%%flowstep risky --catch err\nx = 1\nraise ValueError('no luck')")
    book.ok("%%flowstep after\nkind = type(err).__name__")
    book.ok("%flow run")
    assert book.value("kind, x") == "('ValueError', 1)"

    book.ok("%%flowstep boom\n1 / 0")
    book.ok("%%flowstep bye --always\nfrom flowbook import current\nsaid = [f['step'] for f in current.failures]")
    assert "ZeroDivisionError" in book.fails("%flow run")
    assert book.value("said") == "['boom']"


def test_a_task_of_an_inner_fan_out_gives_the_outer_item_too(book: Notebook) -> None:
    book.ok('%%flowstep outer --foreach "size in [10, 20]"\nbase = size')
    book.ok('%%flowstep inner --foreach "c in [1, 2]"\nscore = base * c')
    book.ok("%%flowstep per_size --join inner\nwinner = max(inner, key=lambda t: t.score)\nsizes = [t.size for t in inner]")
    book.ok("%%flowstep best --join per_size\nfound = [(t.winner.size, t.winner.c, t.sizes) for t in per_size]")
    book.ok("%flow run")

    assert book.value("found, inner[1,0].size") == "([(10, 2, [10, 10]), (20, 2, [20, 20])], 20)"
    assert "equal" in book.ok("%flow check --serial").stdout
    assert "made no 'base'" in book.fails("inner[1,0].base")
