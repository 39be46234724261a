"""FlowSpec classes in notebook cells: run, read, edit, resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kernel.conftest import Notebook

TRAIN = """
from flowbook import FlowSpec, step, Parameter

class TrainFlow(FlowSpec):
    epochs = Parameter("epochs", default=2, help="rounds")

    @step
    def start(self):
        self.rates = [0.1, 0.2]
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        self.lr = self.input
        self.score = scale(self.lr) * self.epochs
        print("training", self.lr)
        self.next(self.pick)

    @step
    def pick(self, inputs):
        self.best = max(inputs, key=lambda x: x.score)
        self.next(self.end)

    @step
    def end(self):
        print("best", self.best.lr)
"""


def test_a_class_in_a_cell_runs_with_functions_of_other_cells_and_parameters(book: Notebook) -> None:
    book.ok("def scale(x):\n    return 10 * x")
    book.ok(TRAIN)
    cell = book.ok("run = %flow run TrainFlow --epochs 3 --wait")
    assert "TrainFlow · run 1 · succeeded" in cell.text

    assert book.value("run['best'].lr, run['best'].score, run['epochs']") == "(0.2, 6.0, 3)"
    assert book.value("[t.score for t in run['train']]") == "[3.0, 6.0]"
    assert "training 0.2" in book.ok("%flow logs train[1]").stdout


def test_an_edited_method_or_function_runs_again_and_what_does_not_depend_on_it_is_cached(book: Notebook) -> None:
    book.ok("def scale(x):\n    return 10 * x")
    book.ok(TRAIN)
    book.ok("%flow run TrainFlow --wait")
    assert "2 of 2 cached" in book.ok("%flow run TrainFlow --wait").text
    book.ok(TRAIN.replace('print("best", self.best.lr)', 'print("the best", self.best.lr)'))
    text = book.ok("%flow run TrainFlow --wait").text
    assert "2 of 2 cached" in text and "the best 0.2" in book.ok("%flow logs end").stdout
    book.ok("def scale(x):\n    return 100 * x")
    text = book.ok("run = %flow run TrainFlow --wait").text
    assert "`scale` changed" in text and book.value("run['best'].score") == "40.0"


def test_a_failed_class_is_resumed_after_its_mend(book: Notebook) -> None:
    book.ok("def scale(x):\n    return 10 * x")
    book.ok(TRAIN.replace('print("best", self.best.lr)', "1 / 0"))
    said = book.fails("%flow run TrainFlow --wait")
    assert "ZeroDivisionError" in said and "1 / 0" in said and "Cell In[3]" in said
    book.ok(TRAIN)
    text = book.ok("%flow resume --flow TrainFlow --wait").text
    assert "2 of 2 cached" in text and "run 2" in text


def test_the_python_twin_takes_the_class(book: Notebook) -> None:
    book.ok("def scale(x):\n    return 10 * x")
    book.ok(TRAIN)
    book.ok("from flowbook import flow\nrun = flow.run(TrainFlow, epochs=1).wait()")

    assert book.value("run['best'].score, run.params") == "(2.0, {'epochs': 1})"


def test_a_class_with_mistakes_is_refused_with_all_of_them(book: Notebook) -> None:
    book.ok("from flowbook import FlowSpec, step")
    book.ok(
        "class Wrong(FlowSpec):\n"
        "    @step\n    def start(self):\n        self.next(self.ende)\n"
        "    @step\n    def other(self):\n        self.next(self.end, foreach='xs', condition='x')\n"
        "    @step\n    def end(self):\n        pass\n"
    )
    said = book.fails("%flow run Wrong")
    assert "Cell In[3], line 4" in said and "Did you mean self.end?" in said and "condition= needs a dict" in said


def test_wrong_parameters_are_refused_with_what_there_is(book: Notebook) -> None:
    book.ok("scale = abs")
    book.ok(TRAIN)
    assert "--epochs" in book.fails("%flow run TrainFlow --epoch 3x")
    assert "epochs" in book.fails("%flow run TrainFlow --epochs many")


def test_a_new_kernel_attaches_to_a_run_of_a_class_and_resumes_it(tmp_path: Path) -> None:
    first = Notebook(tmp_path)
    try:
        first.ok("%load_ext flowbook")
        first.ok("def scale(x):\n    return 10 * x")
        first.ok(TRAIN.replace('print("best", self.best.lr)', "1 / 0"))
        first.fails("%flow run TrainFlow --wait")
    finally:
        first.close()
    second = Notebook(tmp_path)
    try:
        second.ok("%load_ext flowbook")
        assert "run 1" in second.ok("%flow attach --flow TrainFlow").text
        assert "does not know" in second.fails("%flow resume --flow TrainFlow --wait")
        second.ok("def scale(x):\n    return 10 * x")
        second.ok(TRAIN)
        assert "2 of 2 cached" in second.ok("%flow resume --flow TrainFlow --wait").text
    finally:
        second.close()


def test_an_instance_of_a_cells_class_stays_one_as_an_artifact_of_a_flow(book: Notebook) -> None:
    book.ok("class Model:\n    def __init__(self, w):\n        self.w = w")
    book.ok(
        "from flowbook import FlowSpec, step\n"
        "class Fit(FlowSpec):\n"
        "    @step\n    def start(self):\n        self.model = Model(3)\n        self.next(self.end)\n"
        "    @step\n    def end(self):\n        assert isinstance(self.model, Model)\n        self.model.w += 1\n"
    )
    book.ok("run = %flow run Fit --wait")

    assert book.value("isinstance(run['model'], Model), run['model'].w, run['start'].model.w") == "(True, 4, 3)"


def test_check_show_and_graph_take_the_name_of_a_class(book: Notebook) -> None:
    book.ok("scale = abs")
    book.ok(TRAIN)
    assert book.ok("%flow check TrainFlow").stdout == "flow TrainFlow: 4 steps, no error\n"
    shown = book.ok("%flow show TrainFlow").stdout
    assert "pick" in shown and "join" in shown and "parameter --epochs  rounds" in shown and "next:" not in shown
    assert "next:" not in book.ok("%flow graph TrainFlow").text
    assert "no FlowSpec class" in book.fails("%flow graph Nothing") and "no FlowSpec class" in book.fails("%flow check Nothing")


def test_a_failed_method_is_debugged_in_the_kernel_with_its_own_inputs(book: Notebook) -> None:
    book.ok("def scale(x):\n    return 1 / (x - 0.2)")
    book.ok(TRAIN)
    book.fails("%flow run TrainFlow --wait")
    said = book.run("%flow debug")
    assert "train[1] of run 1: after start; self.input = 0.2" in said.stdout
    assert "ZeroDivisionError" in said.error and "self.score = scale(self.lr)" in said.error and "flowbook/kernel" not in said.error
    book.ok("def scale(x):\n    return x")
    assert "it bound self.lr, self.score" in book.ok("%flow debug train[1]").stdout
    book.ok("%flow resume --flow TrainFlow --wait")
    assert "pick of run 2: joins train" in book.ok("%flow debug pick").stdout


def test_a_run_of_the_command_line_is_followed_and_stopped_from_a_notebook(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    path = tmp_path / "waits.py"
    path.write_text(
        "from flowbook import FlowSpec, step\n\n\n"
        "class Waits(FlowSpec):\n"
        "    @step\n    def start(self):\n        print('waiting', flush=True)\n"
        f"        open({str(gate)!r}).read()\n        self.next(self.end)\n\n"
        "    @step\n    def end(self):\n        pass\n\n\n"
        "if __name__ == '__main__':\n    Waits()\n"
    )
    environ = {**os.environ, "FLOWBOOK_STORE": str(tmp_path / "store")}
    command = subprocess.Popen([sys.executable, str(path), "run"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    book = Notebook(tmp_path, allow_stdin=True)  # else attaching waits for the end
    try:
        assert command.stdout is not None
        assert any("waiting" in line for line in iter(command.stdout.readline, ""))
        book.ok("%load_ext flowbook")
        text = book.ok("%flow attach --flow Waits").text
        assert "gone" not in text and "running" in text
        assert "asked to stop" in book.ok("%flow stop --flow Waits").stdout
        rest, _ = command.communicate(timeout=60)
        assert command.returncode == 1 and "stopped" in rest
        book.fails("%flow wait --flow Waits")
    finally:
        command.kill()
        command.wait()
        book.close()


def test_a_local_module_that_a_method_imports_counts(book: Notebook) -> None:
    module = book.folder / "rates.py"
    module.write_text("RATE = 1\n")
    cell = (
        "from flowbook import FlowSpec, Parameter, step\n"
        "class Reads(FlowSpec):\n"
        "    p = Parameter('p', default=1)\n"
        "    @step\n    def start(self):\n        import rates\n        self.rate = rates.RATE\n        self.next(self.end)\n"
        "    @step\n    def end(self):\n        pass\n"
    )
    book.ok(cell)
    book.ok("%flow run Reads --wait")
    module.write_text("RATE = 2\n")
    book.ok("run = %flow run Reads --wait")

    assert book.value("run['rate']") == "2"


MINI = (
    "from flowbook import FlowSpec, Parameter, step\n"
    "class Mini(FlowSpec):\n"
    "    epochs = Parameter('epochs', default=1)\n"
    "    @step\n    def start(self):\n        self.best = 1\n        self.next(self.end)\n"
    "    @step\n    def end(self):\n        BODY\n"
)


def test_every_hint_names_the_flow_where_the_default_is_another(book: Notebook) -> None:
    book.ok("%%flowstep a\nx = 1")
    assert "--flow" not in book.fails("%flow resume") and "--flow" not in book.ok("%flow run --wait").text
    book.ok(MINI.replace("BODY", "1 / 0"))
    said = book.fails("%flow run Mini --wait")
    assert "`%flow resume --flow Mini`" in said and "`%flow logs end --flow Mini`" in said
    assert "end" in book.fails("%flow logs ende --flow Mini") and "nothing was printed" in book.ok("%flow logs end --flow Mini").stdout
    book.ok(MINI.replace("BODY", "pass"))
    book.ok("%flow resume --flow Mini --wait")
    assert "`%flow run Mini` starts a new one" in book.fails("%flow resume --flow Mini")
    book.ok("%%flowstep other --flow second\n1 / 0")
    assert "`%flow resume --flow second`" in book.fails("%flow run --flow second --wait")


def test_a_misspelled_class_a_file_and_nothing_at_all_are_told_what_there_is(book: Notebook) -> None:
    book.ok(MINI.replace("BODY", "pass"))
    for line in ("%flow run Mni", "%flow run --wait Mni", "%flow run --flow Mni"):
        said = book.fails(line)
        assert "Did you mean Mini? Flows here: Mini (a class): `%flow run Mini`." in said, said
    for line in ("%flow run", "%flow show", "%flow check"):
        assert "no step is defined yet" in (said := book.fails(line)) and "Mini (a class): `%flow run Mini`" in said
    said = book.fails("%flow run train_flow.py")
    assert "`!flowbook run train_flow.py`" in said and "from train_flow import" in said
    assert "Mini · run 1 · succeeded" in book.ok("%flow run --wait --flow Mini --epochs 2").text
    book.ok("%%flowstep a\nx = 1")
    assert "did you mean 'Mini'?" in book.fails("%flow run Mimi")


def test_options_of_metaflow_are_answered(book: Notebook) -> None:
    book.ok(MINI.replace("BODY", "pass"))
    assert "did you mean --max-parallel?" in book.fails("%flow run Mini --max-workers 3")
    assert "only --with kubernetes is there" in book.fails("%flow run Mini --with retry")


def test_step_cells_beside_a_class_are_a_flow_of_their_own(book: Notebook) -> None:
    book.ok(MINI.replace("BODY", "pass"))
    book.ok("%flow run Mini --wait")
    assert "Mini · run 1" in book.ok("%flow status").text
    book.ok("%%flowsetup\nseed = 3")
    book.ok("%%flowparams\nn = 1")
    book.ok("%%flowstep a\nx = n + seed")

    assert "book · run 1 · succeeded" in book.ok("%flow run --wait").text and book.value("x") == "4"
    assert "book" in book.ok("%flow status").text and "  1  succeeded" in book.ok("%flow runs --flow Mini").stdout


def test_resume_takes_parameters(book: Notebook) -> None:
    book.ok(MINI.replace("BODY", "assert self.epochs > 5; print('epochs', self.epochs)"))
    book.fails("%flow run Mini --wait")
    assert "did you mean --epochs?" in book.fails("%flow resume --flow Mini --epoch 6")
    book.ok("run = %flow resume --flow Mini --epochs 6 --wait")
    assert book.value("run['epochs'], run.state") == "(6, 'succeeded')"
    book.ok("%%flowparams\nn: int = 1")
    book.ok("%%flowstep a\nassert n > 5\nx = n")
    book.fails("%flow run --wait")
    assert "--n takes int" in book.fails("%flow resume --n many")
    book.ok("%flow resume --n 6 --wait")
    assert book.value("x") == "6"
    book.fails("%flow run --n 2 --wait")
    assert book.value("flow.resume(n=7, wait=True).params") == "{'n': 7}"


def test_debug_of_a_method_shows_only_the_users_frames_and_leaves_self(book: Notebook) -> None:
    book.ok(MINI.replace("BODY", "got = self.best + 1\n        self.seen = got\n        print(getattr(self, 'bs' + 'et'))"))
    book.fails("%flow run Mini --wait")
    said = book.fails("%flow debug --flow Mini")
    assert "Did you mean self.best?" in said and "print(getattr(self, " in said and "__getattr__" not in said
    assert book.value("self.seen, self.best, self.epochs") == "(2, 1, 1)"
    assert "it bound self.best" in book.ok("%flow debug start --flow Mini").stdout and book.value("self.best") == "1"
    book.ok("%%flowstep a\nx = 1")
    assert book.value("'self' in globals()") == "False"


def test_a_wrong_name_is_answered_with_the_nearest(book: Notebook) -> None:
    book.ok(MINI.replace("BODY", "self.why = str(getattr(current, 'run_id'))").replace("import FlowSpec", "import current, FlowSpec"))
    book.ok("run = %flow run Mini --wait")
    assert "end has no artifact 'bst'. Did you mean 'best'?" in book.fails("run['bst']")
    assert "It has: best, epochs, why." in book.fails("run['nothing']")
    assert "did you mean 'start'?" in book.fails("%flow logs stat --flow Mini")
