"""The command line: what is typed, what is said back, with which exit code; and runs driven by it, as processes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flowbook import FlowSpec, Parameter, step
from flowbook.cli import (
    FAILED,
    INTERRUPTED,
    NOT_CONFIGURED,
    SUCCEEDED,
    TERMINATED,
    WRONG,
    arguments,
    commands,
    failure,
    place,
    program,
    single,
    text,
)
from flowbook.cli.progress import MOST_FAILURES, Screen
from flowbook.engine import events, scheduler
from flowbook.engine.events import Task
from flowbook.engine.launch.local import Exit
from flowbook.engine.state import RunState
from flowbook.errors import DefinitionError
from flowbook.spec.flow import Foreach, Next, Options, Resources, Spec, Step
from flowbook.store.memory import MemoryStore

REPO = Path(__file__).parent.parent

TRAIN = '''
from flowbook import FlowSpec, Parameter, step

class TrainFlow(FlowSpec):
    """Train a model and evaluate it."""

    alpha = Parameter("alpha", default=0.1, help="learning rate, 100% of the time")
    fail_at = Parameter("fail_at", default=-1)

    @step
    def start(self):
        """Make rates."""
        self.rates = [0.1, 0.2, 0.3]
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        print("training on", self.input)
        if self.index == self.fail_at:
            raise ValueError(f"bad {self.input}")
        self.score = self.input * 2
        self.next(self.best)

    @step
    def best(self, inputs):
        self.top = max(each.score for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("top", self.top, "alpha", self.alpha)

if __name__ == "__main__":
    TrainFlow()
'''
ONE = """
from flowbook import FlowSpec, step

class {name}(FlowSpec):
    @step(start=True, end=True)
    def only(self):
        {body}
"""


@dataclass
class Shell:
    """A folder with flow files, and a store of its own."""

    folder: Path

    def write(self, name: str, source: str) -> str:
        (self.folder / name).write_text(source)
        return name

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLOWBOOK_", "METAFLOW_"))}
        return {**kept, "PYTHONPATH": str(REPO), "FLOWBOOK_STORE": str(self.folder / "store"), "NO_COLOR": "", "COLUMNS": "200"}

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """``shell("train.py", "run")`` is ``python train.py run``; ``shell("-m", "flowbook", …)`` the program."""
        return subprocess.run([sys.executable, *words], cwd=self.folder, env=self.env | env, capture_output=True, text=True)

    def flowbook(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self("-m", "flowbook", *words)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, *words], cwd=self.folder, env=self.env, stdout=-1, stderr=-1, text=True)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    found = Shell(tmp_path)
    found.write("train.py", TRAIN)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell in which run 1 has succeeded, run 2 has failed, and run 3 has gone on with it."""
    shell = Shell(tmp_path_factory.mktemp("done"))
    shell.write("train.py", TRAIN)
    first = shell("train.py", "run", "--tag", "nightly", "--run-id-file", "id.txt")
    second = shell("train.py", "run", "--fail_at", "1")
    third = shell("train.py", "resume", "--fail-at=-1")
    assert (first.returncode, second.returncode, third.returncode) == (SUCCEEDED, FAILED, SUCCEEDED), first.stderr + third.stderr
    shell.first, shell.second, shell.third = first, second, third  # type: ignore[attr-defined]
    return shell


def no_traceback_of_ours(said: str) -> bool:
    return "flowbook/cli" not in said and "flowspec.py" not in said and "argparse" not in said


# ---- what is typed ------------------------------------------------------------------------------------------------------------


class Sample(FlowSpec):
    """A flow that is only read here."""

    alpha = Parameter("alpha", default=0.1, help="a rate, 5% or so")
    learning_rate = Parameter("learning_rate", default=0.1)
    fast = Parameter("fast", default=False)
    name_of = Parameter("label", required=True, type=str, help="how it is called")

    @step(start=True, end=True)
    def only(self) -> None:
        pass


def split(*words: str) -> arguments.Given:
    found = arguments.split(words, "python flow.py", commands.COMMANDS, Sample)
    assert found is not None
    return found


def parse(*words: str) -> arguments.argparse.Namespace:  # type: ignore[name-defined]
    given = split(*words)
    return arguments.parse(commands.COMMANDS[given.command], given, Sample)


def test_with_may_stand_before_and_after_the_command() -> None:
    assert parse("--with", "retry:times=2", "run", "--with", "card").withs == ["retry:times=2", "card"]
    assert parse("--with=kubernetes", "run").withs == ["kubernetes"]


def test_options_of_metaflow_before_the_command_are_accepted_and_told() -> None:
    given = split("--no-pylint", "--metadata", "local", "--datastore=s3", "--environment", "conda", "--quiet", "run", "--alpha", "1")

    assert given.command == "run" and given.quiet
    assert given.ignored == ("--metadata", "--datastore", "--environment")


def test_parameters_are_options_whose_text_is_read_later() -> None:
    assert parse("run", "--alpha", "-0.5", "--learning-rate=3", "--label", "x y").params == {
        "alpha": "-0.5",
        "learning_rate": "3",
        "label": "x y",
    }


def test_a_boolean_parameter_needs_no_value() -> None:
    assert parse("run", "--fast", "--tag", "a").params == {"fast": "true"}
    assert parse("run", "--fast", "False").params == {"fast": "False"}


def test_a_tag_may_be_given_several_times() -> None:
    assert parse("run", "--tag", "a", "--tag", "b").tag == ["a", "b"]


@pytest.mark.parametrize(
    ("words", "what", "remedy"),
    [
        (["rnu"], "there is no command 'rnu'", "Did you mean 'run'?"),
        (["run", "--alpah", "3"], "there is no option --alpah", "Did you mean '--alpha'?"),
        (["run", "--alpah=3"], "there is no option --alpah", "Did you mean '--alpha'?"),
        (["--alpha", "3", "run"], "there is no option --alpha before the command", "`python flow.py run --alpha …`"),
        (["--wiht", "card", "run"], "there is no option --wiht", "Did you mean '--with'?"),
        (["run", "train"], "'train' is too much", "`python flow.py run --help`"),
        (["run", "--alpha"], "argument --alpha: expected one argument", "--help"),
        (["run", "--max-workers", "0"], "number of workers (1 or more)", "--help"),
        (["run", "--max-workers", "many"], "number of workers (1 or more)", "--help"),
        (["--metadata"], "--metadata takes a value", "--help"),
        (["graph", "--dot", "--json"], "not allowed with", "--help"),
        (["tag"], "the following arguments are required", "--help"),
        (["runs", "-n", "-1"], "number (0 or more)", "--help"),
        (["tag", "replace", "a"], "required: TAG", "tag replace --help"),
        (["package", "build"], "invalid choice: 'build'", "--help"),
    ],
)
def test_a_mistake_names_what_was_typed_and_the_next_move(words: list[str], what: str, remedy: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        parse(*words)

    finding = caught.value.findings[0]
    assert what in finding.what and remedy in finding.remedy


def test_all_unknown_options_are_told_at_once() -> None:
    with pytest.raises(DefinitionError) as caught:
        parse("run", "--alpah", "1", "--fats")

    assert ["--alpah" in str(caught.value), "--fats" in str(caught.value)] == [True, True]


@pytest.mark.parametrize("name", list(commands.COMMANDS))
def test_every_command_has_a_help_and_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(name, "--help")

    command = commands.COMMANDS[name]
    assert ended.value.code == 0 and command.help in capsys.readouterr().out
    assert callable(command.load())


def test_the_help_of_run_shows_the_parameters_with_type_default_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("run", "--help")

    shown = " ".join(capsys.readouterr().out.split())
    assert "--alpha FLOAT a rate, 5% or so (a number; default 0.1)" in shown
    assert "--label STR how it is called (a text; required)" in shown
    assert "--learning_rate FLOAT" in shown and "--learning-rate" not in shown


def test_the_overview_lists_the_commands_and_the_flows_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments.split([], "python flow.py", commands.COMMANDS, Sample) is None

    shown = capsys.readouterr().out
    assert "A flow that is only read here." in shown
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in commands.COMMANDS if name != "export")


def test_configs_are_taken_out_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    monkeypatch.setattr("flowbook.spec.parameters.set_config_sources", lambda files, values: told.update(files=files, values=values))

    given = split("--config", "c", "c.json", "run", "--config-value", "d", "{}", "--alpha", "1")

    assert (given.rest, told) == (["--alpha", "1"], {"files": {"c": "c.json"}, "values": {"d": "{}"}})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["lr"], "'lr' is not NAME=JSON"),
        (["=3"], "'=3' is not NAME=JSON"),
        (["a b=3"], "is not NAME=JSON"),
        (["lr=fast"], "A text is written in quotes: --input 'lr=\"fast\"'"),
        (["lr="], "the value of lr is not JSON"),
    ],
)
def test_an_input_that_cannot_be_read_says_how_it_is_written(words: list[str], told: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(told)):
        single.read_inputs(words)


def test_inputs_are_json() -> None:
    assert single.read_inputs(["lr=0.1", 'name="a=b"', "xs=[1, 2]"]) == {"lr": 0.1, "name": "a=b", "xs": [1, 2]}


# ---- what is shown ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "plain", "coloured"),
    [
        ("text", "text", "text"),
        ("10%\r20%\r", "20%", "20%"),
        ("\x1b[31mred", "red", "\x1b[31mred\x1b[0m"),
        ("\x1b[31mred\x1b[0m", "red", "\x1b[31mred\x1b[0m"),
        ("\x1b[2J\x1b[Hgone \x1b]0;title\x07\x00\x9b", "gone ", "gone "),
        ("tab\tstays", "tab\tstays", "tab\tstays"),
    ],
)
def test_what_a_task_prints_may_colour_but_move_nothing(line: str, plain: str, coloured: str) -> None:
    assert (text.clean(line, False), text.clean(line, True)) == (plain, coloured)


def test_an_unknown_word_is_answered_with_the_nearest_and_all() -> None:
    assert text.meant("trian", ["start", "train"], "Steps") == "Did you mean 'train'? Steps: start, train."
    assert text.meant("x", [], "Runs") == "Runs: none."


class Stage:
    """A Screen, fed with events of a run that nothing carries out."""

    def __init__(self, width: int, *, quiet: bool = False) -> None:
        start = Step("start", "", "f", "f", next=Next("foreach", ("train",), "xs"), hosted=("train",), saves=("xs",))
        each = Foreach("x", "xs", ("x",))
        train = Step("train", "", "f", "f", Options(foreach=each), ("train",), host="start")
        self.spec = Spec("demo", "7", (start, train))
        self.state, self.out = RunState(self.spec), io.StringIO()
        self.screen, self.width = Screen(self.spec, self.out, quiet), width
        self.happened(events.run_started(0))
        self.happened(events.launched(Task("start"), 1))
        plans = {"train": {"count": width, "items": "h"}}
        self.happened(events.succeeded(Task("start"), 2, missing=[], plans=plans))

    def happened(self, event: dict[str, object]) -> None:
        self.state.apply(event)
        self.screen.event(event, self.state)
        self.screen.settled(self.state)

    def train(self, i: int, ended: Callable[..., dict[str, object]] = events.succeeded, **facts: object) -> None:
        self.happened(events.launched(Task("train", (i,)), 3 + i))
        self.happened(ended(Task("train", (i,)), 4 + i, **facts))

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def test_a_fan_out_of_a_thousand_tasks_prints_two_lines() -> None:
    stage = Stage(1000)
    for i in range(1000):
        stage.train(i)

    assert stage.lines == [
        "run 7 of demo",
        "start starts",
        "start done: 1.0 s",
        "train starts",
        "train done: 1,000 of 1,000 tasks, 16 min 40 s",
    ]


def test_of_many_failures_a_few_are_told_and_all_are_counted() -> None:
    stage = Stage(100)
    for i in range(100):
        stage.train(i, events.failed, error={"type": "ValueError", "message": f"bad {i}\nmore", "item": str(i)})

    failures = [line for line in stage.lines if "ValueError" in line]
    assert len(failures) == MOST_FAILURES and failures[0] == "train[0] (item 0) failed in attempt 1: ValueError: bad 0"
    assert stage.lines[-1].startswith("train ended: 0 of 100 tasks, 100 failed")
    assert "(more failures of this step are only counted)" in stage.lines


NO_NODE = "no node for cpu 900, memory 4096M yet: 0/1 nodes are available: 1 Insufficient cpu. If none is being made, ask for less, or wait"


def waits(stage: Stage, i: int) -> None:
    hint = {"say": "frame", "f": "phase", "step": "train", "index": [i], "attempt": 0, "phase": "queued", "why": NO_NODE}
    stage.screen.hint(hint, None)  # type: ignore[arg-type]


def test_what_several_tasks_say_is_told_once_and_counted() -> None:
    stage = Stage(3)
    for i in range(3):
        stage.happened(events.launched(Task("train", (i,)), 3))
        waits(stage, i)
    for i in range(3):
        error = {"reason": "lost", "message": f"{NO_NODE}. It has waited for 60 s, and is given up"}
        stage.happened(events.failed(Task("train", (i,)), 4, error=error))

    assert stage.lines[4:] == [
        f"train[0] is queued: {NO_NODE}",
        "train[0] failed in attempt 1: as told above. It has waited for 60 s, and is given up",
        "(2 more waits of train with the same words)",
        "(2 more failures of train with the same words)",
        "train ended: 0 of 3 tasks, 3 failed, 1.0 s",
    ]
    first = failure.first_failure(stage.spec, stage.state)
    assert first and stage.screen.briefly(failure.headline(stage.spec, first)).endswith(
        "as told above. It has waited for 60 s, and is given up"
    )


def test_a_long_error_that_a_task_has_printed_is_not_told_again(tmp_path: Path) -> None:
    stage, why = Stage(2), "the image lacks " + ", ".join(f"package{i}" for i in range(20))
    for i, printed in enumerate([f"ImageError: {why}\n", "nothing of it\n"]):
        (tmp_path / "output").write_text(printed)
        stage.happened(events.launched(Task("train", (i,)), 3))
        stage.screen.output(Task("train", (i,)), 0, tmp_path / "output")
        error = {"type": "ImageError", "message": f"{why}{'' if i == 0 else ', and torch'}"}
        stage.happened(events.failed(Task("train", (i,)), 4, error=error))

    assert [line for line in stage.lines if "failed in attempt" in line] == [
        "train[0] failed in attempt 1: as told above",
        "train[1] failed in attempt 1: as told above, and torch",
    ]


def test_short_errors_stand_whole_wherever_they_are_told() -> None:
    stage = Stage(1)
    stage.train(0, events.failed, error={"type": "ValueError", "message": "bad"})

    assert stage.screen.briefly("error: ValueError: bad") == "error: ValueError: bad"


def test_a_run_that_fails_says_a_long_error_once_on_a_terminal_and_whole_where_only_errors_are_read(shell: Shell) -> None:
    shell.write("dies.py", ONE.format(name="DiesFlow", body="raise ValueError('bad ' * 60 + 'end')") + "DiesFlow()")
    command = [sys.executable, "dies.py", "run"]
    both = subprocess.run(
        command, cwd=shell.folder, env=shell.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    apart = shell("dies.py", "run")

    assert both.returncode == apart.returncode == FAILED
    assert "error: only of run 1, at dies.py, line" in both.stdout and ": as told above\n" in both.stdout, both.stdout
    assert "error: only of run 2, at dies.py, line" in apart.stderr and "ValueError: bad bad" in apart.stderr.partition("error: ")[2]


def test_what_was_taken_over_is_counted_whole_also_if_the_screen_hears_of_it_late() -> None:
    stage = Stage(3)
    late = [events.reused(Task("train", (i,)), 3, run="6", index=(i,)) for i in range(3)]
    for event in late:
        stage.state.apply(event)
    stage.screen.event(late[0], stage.state)
    stage.screen.settled(stage.state)

    assert stage.lines[-1] == "train done: 3 of 3 tasks, 3 taken over, 0.0 s"


def test_a_step_of_which_some_was_taken_over_says_that_the_rest_starts() -> None:
    stage = Stage(2)
    stage.happened(events.reused(Task("train", (0,)), 3, run="6", index=(0,)))
    stage.train(1)

    assert stage.lines[-2] == "train starts" and stage.lines[-1].startswith("train done: 2 of 2 tasks, 1 taken over")


def test_quiet_leaves_only_what_tasks_print(tmp_path: Path) -> None:
    stage = Stage(1, quiet=True)
    (tmp_path / "output").write_bytes(b"10%\r20%\nhalf a li")
    stage.happened(events.launched(Task("train", (0,)), 3))
    stage.screen.output(Task("train", (0,)), 0, tmp_path / "output")
    assert stage.lines == ["[7/train/0] 20%"]

    with (tmp_path / "output").open("ab") as more:
        more.write(b"ne")
    stage.screen.output(Task("train", (0,)), 0, tmp_path / "output")
    stage.happened(events.succeeded(Task("train", (0,)), 4))
    assert stage.lines == ["[7/train/0] 20%", "[7/train/0] half a line"]


def test_output_of_a_binary_that_never_ends_its_line_needs_little_memory(tmp_path: Path) -> None:
    stage = Stage(1)
    (tmp_path / "output").write_bytes(b"\xff\x00" * 2_000_000)
    stage.happened(events.launched(Task("train", (0,)), 3))

    stage.screen.output(Task("train", (0,)), 0, tmp_path / "output")

    assert sum(len(tail.rest) for tail in stage.screen._tails.values()) <= 10_000


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    screen = Screen(Spec("demo", "1", ()), Closed())
    screen.say("one")
    screen.say("two")


# ---- files that are no flow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("missing.py", None, ["missing.py: there is no such file", "train.py"]),
        ("empty.py", "x = 1", ["empty.py: has no flow", "flowbook.FlowSpec"]),
        ("broken.py", "def f(:\n", ["broken.py: is not valid Python", "def f(:", "SyntaxError"]),
        ("raises.py", "def f():\n    return 1 / 0\nf()\n", ["the file raised ZeroDivisionError", 'raises.py", line 2', "return 1 / 0"]),
        ("imports.py", "import nothing_of_that_name\n", ["the file raised ModuleNotFoundError", "nothing_of_that_name"]),
        ("binary.py", "\0", ["is not valid Python"]),
        ("book.ipynb", "{}", ["is a notebook", "flowbook export book.ipynb"]),
    ],
)
def test_a_file_without_a_flow_is_explained(shell: Shell, name: str, source: str | None, words: list[str]) -> None:
    if source is not None:
        shell.write(name, source)
    found = shell.flowbook("run", name)

    assert found.returncode == WRONG
    assert all(word in found.stderr for word in words), found.stderr
    assert no_traceback_of_ours(found.stderr) and "runpy" not in found.stderr


def test_of_two_flows_in_a_file_one_has_to_be_named(shell: Shell) -> None:
    shell.write("two.py", ONE.format(name="AFlow", body="print('this is A')") + ONE.format(name="BFlow", body="print('this is B')"))

    unclear = shell.flowbook("run", "two.py")
    assert unclear.returncode == WRONG and "has 2 flows: AFlow, BFlow" in unclear.stderr and "two.py:AFlow" in unclear.stderr

    chosen = shell.flowbook("run", "two.py:BFlow")
    assert chosen.returncode == SUCCEEDED and "this is B" in chosen.stdout and "this is A" not in chosen.stdout

    wrong = shell.flowbook("run", "two.py:CFlow")
    assert wrong.returncode == WRONG and "has no flow 'CFlow'" in wrong.stderr


def test_a_flow_that_others_build_on_is_not_one_itself() -> None:
    class Base(FlowSpec):
        pass

    class Derived(Base):
        pass

    module = type(sys)("flows")
    for cls in (Base, Derived):
        cls.__module__ = "flows"
        setattr(module, cls.__name__, cls)

    assert program.classes_in(module) == [Derived]


def test_a_file_that_creates_its_flow_runs_by_flowbook_as_by_python(shell: Shell) -> None:
    found = shell.flowbook("--quiet", "run", "train.py", "--alpha", "0.5")

    assert found.returncode == SUCCEEDED and "top 0.6 alpha 0.5" in found.stdout, found.stderr


def test_modules_beside_the_file_are_found_and_those_of_the_working_folder_are_not(shell: Shell) -> None:
    (shell.folder / "flows").mkdir()
    (shell.folder / "flows" / "beside.py").write_text("WORD = 'beside the file'")
    (shell.folder / "beside.py").write_text("WORD = 'in the working folder'")
    shell.write("flows/one.py", ONE.format(name="OneFlow", body="import beside; print(beside.WORD)"))

    assert "beside the file" in shell.flowbook("run", "flows/one.py").stdout


# ---- runs ---------------------------------------------------------------------------------------------------------------------


def test_a_run_shows_its_steps_and_each_line_that_tasks_print(done: Shell) -> None:
    lines = done.first.stdout.splitlines()  # type: ignore[attr-defined]

    assert lines[0] == "run 1 of TrainFlow"
    assert {"[1/train/0] training on 0.1", "[1/train/2] training on 0.3", "[1/end/0] top 0.6 alpha 0.1"} <= set(lines)
    assert any(re.match(r"train done: 3 of 3 tasks, ", line) for line in lines)
    assert lines[-1].startswith("run 1 of TrainFlow succeeded after ")
    assert "\x1b" not in done.first.stdout and "\r" not in done.first.stdout  # type: ignore[attr-defined]
    assert (done.folder / "id.txt").read_text() == "1"


def test_a_failed_run_shows_the_users_traceback_the_item_the_last_lines_and_the_next_move(done: Shell) -> None:
    said = done.second.stderr  # type: ignore[attr-defined]

    assert 'raise ValueError(f"bad {self.input}")' in said
    line = 1 + next(i for i, line in enumerate(TRAIN.splitlines()) if "raise" in line)
    assert f"error: train[1] of run 2, at train.py, line {line}, item 0.2: ValueError: bad 0.2" in said
    assert "last lines printed by train[1]:\n    training on 0.2" in said
    assert "2 of 3 tasks of train succeeded, 1 failed. Not run: best, end." in said
    assert "`python train.py resume` runs only what is missing" in said
    assert no_traceback_of_ours(said)


def test_a_resume_with_a_changed_parameter_runs_what_depends_on_it(done: Shell) -> None:
    shown = done.third.stdout  # type: ignore[attr-defined]

    assert "run 3 of TrainFlow, which goes on with run 2" in shown
    assert "start done: 1 taken over" in shown and "[3/train/1] training on 0.2" in shown


def test_a_resume_takes_the_parameters_of_its_origin(shell: Shell) -> None:
    assert shell("train.py", "run", "--alpha", "7", "--fail_at", "9").returncode == SUCCEEDED

    again = shell("train.py", "resume", "end", "--origin-run-id", "1")

    assert again.returncode == SUCCEEDED and "top 0.6 alpha 7.0" in again.stdout
    assert "train done: 3 of 3 tasks, 3 taken over" in again.stdout and "training" not in again.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resume", "--origin-run-id", "12"], ["there is no run '12' of TrainFlow", "newest first: 3, 2, 1"]),
        (["resume", "trian"], ["has no step 'trian'", "Did you mean 'train'?"]),
        (["run", "--alpha", "fast", "--fail_at", "x"], ["`--alpha fast`", "`--fail_at x`", "a whole number is expected"]),
        (["run", "--with", "rerty"], ["rerty", "retry"]),
        (["run", "--tag", ""], ["is empty"]),
        (["logs", "9/train"], ["there is no run '9'"]),
        (["logs", "1/trian"], ["has no step 'trian'", "Did you mean 'train'?"]),
        (["logs", "1/train/8"], ["has no task '8'", "Tasks: 0, 1, 2"]),
        (["logs", "1/train/0/x"], ["is not RUN/STEP/TASK", "3/train/0"]),
        (["dump", "1/end", "--include", "tpo"], ["has no artifact 'tpo'", "Did you mean 'top'?"]),
        (["tag", "remove", "nihgtly", "--run-id", "1"], ["no tag 'nihgtly'", "Did you mean 'nightly'?"]),
        (["tag", "list", "--run-id", "x"], ["there is no run 'x'"]),
        (["runs", "--state", "sucess"], ["there is no state 'sucess'"]),
        (["card", "get", "1/train"], ["no card", "@card"]),
        (["gc", "--keep", "-1"], ["--keep -1"]),
        (["test", "trian"], ["has no step 'trian'", "Did you mean 'train'?"]),
        (["test", "train", "--input", "x"], ["not NAME=JSON"]),
        (["test", "train"], ["step train: is in a foreach", "--input input=…"]),
        (["logs", "trian"], ["there is no run 'trian'"]),
        (["logs", "1/train[8]"], ["has no task '8'"]),
        (["dump", "2", "--include", "tpo"], ["2: it has no artifact 'tpo'"]),
    ],
)
def test_bad_input_is_answered_with_what_there_is(done: Shell, words: list[str], told: list[str]) -> None:
    found = done("train.py", *words)

    assert found.returncode == WRONG, found.stderr
    assert all(word in found.stderr for word in told), found.stderr
    assert "Traceback" not in found.stderr


def test_nothing_is_resumed_before_there_is_a_run(shell: Shell) -> None:
    found = shell("train.py", "resume")

    assert found.returncode == WRONG and "TrainFlow has no run yet" in found.stderr and "`python train.py run`" in found.stderr


@pytest.mark.parametrize("words", [["--with", "kubernetes", "run"], ["run", "--with", "kubernetes:namespace=x"]])
def test_kubernetes_is_parsed_and_refused_as_not_configured(shell: Shell, words: list[str]) -> None:
    found = shell("train.py", *words)

    assert found.returncode == NOT_CONFIGURED
    assert "no cluster is set up here" in found.stderr and "Nothing was run" in found.stderr
    assert not (shell.folder / "store").exists()


def test_with_retry_adds_it_to_the_steps(shell: Shell) -> None:
    found = shell("train.py", "--with", "retry:times=1,minutes_between_retries=0", "run", "--fail_at", "0")

    assert found.returncode == FAILED
    assert "train[0] (item 0.1) failed in attempt 1 and is tried again: ValueError: bad 0.1" in found.stdout
    assert "failed in attempt 2: ValueError" in found.stdout


def test_findings_of_the_check_are_told_all_at_once(shell: Shell) -> None:
    shell.write("wrong.py", TRAIN.replace("self.next(self.best)", "self.next(self.bets)").replace("self.next(self.end)", "pass"))
    checked, started = shell("wrong.py", "check"), shell("wrong.py", "run")

    assert (checked.returncode, started.returncode) == (WRONG, WRONG)
    assert checked.stderr == started.stderr
    assert "bets" in checked.stderr and "step best" in checked.stderr and no_traceback_of_ours(checked.stderr)


def test_a_process_killed_by_itself_is_told_with_its_reason(shell: Shell) -> None:
    shell.write("dies.py", ONE.format(name="DiesFlow", body="import os; os._exit(7)") + "DiesFlow()")
    found = shell("dies.py", "run")

    assert found.returncode == FAILED and "os._exit(7)" in found.stderr and "`python dies.py resume`" in found.stderr


def test_what_a_task_prints_cannot_move_the_cursor(shell: Shell) -> None:
    shell.write(
        "prints.py", ONE.format(name="PrintsFlow", body=r"print('\x1b[2Jgone\x1b[31m red'); print('10%\r20%\r100%')") + "PrintsFlow()"
    )
    found = shell("prints.py", "run")

    assert "[1/only/0] gone red\n[1/only/0] 100%\n" in found.stdout


HOOKS = """
from flowbook import FlowSpec, Parameter, exit_hook, step

def good(run):
    print("good:", run.pathspec, run.successful)

def bad():
    print("bad")
    raise KeyError("in the hook")

@exit_hook(on_success=[good], on_error=[bad])
class HookFlow(FlowSpec):
    ok = Parameter("ok", default=True)

    @step(start=True, end=True)
    def only(self):
        assert self.ok

HookFlow()
"""


def test_exit_hooks_are_called_when_the_run_has_ended(shell: Shell) -> None:
    shell.write("hooks.py", HOOKS)
    good, bad = shell("hooks.py", "run"), shell("hooks.py", "run", "--ok", "false")

    assert good.returncode == SUCCEEDED and good.stdout.splitlines()[-1] == "good: HookFlow/1 True"
    assert bad.returncode == FAILED and bad.stdout.splitlines()[-1] == "bad"
    assert "KeyError: 'in the hook'" in bad.stderr and "the exit hook bad failed" in bad.stderr and no_traceback_of_ours(bad.stderr)


def test_what_has_no_effect_on_this_machine_is_told(shell: Shell) -> None:
    source = (
        ONE.format(name="OneFlow", body="pass")
        .replace("import FlowSpec", "import FlowSpec, kubernetes")
        .replace("    @step", "    @kubernetes(cpu=2)\n    @step")
    )
    shell.write("one.py", source + "OneFlow()")

    assert "step only: @kubernetes has no effect here" in shell("one.py", "run").stdout


def test_a_flow_that_is_created_without_a_file_is_told_where_it_belongs(shell: Shell) -> None:
    found = shell("-c", "from train import TrainFlow; TrainFlow()")

    assert found.returncode == FAILED  # a Python error, as in a notebook
    assert "TrainFlow(): is the command line of a flow file" in found.stderr and "`%flow run TrainFlow`" in found.stderr


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"steps": 3}', "\xff"])
def test_a_damaged_run_is_named_and_the_others_are_still_shown(shell: Shell, damage: str) -> None:
    for _ in range(2):
        assert shell("train.py", "run").returncode == SUCCEEDED
    [spec] = (shell.folder / "store").glob("*/flows/TrainFlow/1/run.json")
    spec.chmod(0o600)
    spec.write_text(damage)

    logs, resume, runs = shell("train.py", "logs", "1"), shell("train.py", "resume", "--origin-run-id", "1"), shell("train.py", "runs")

    for found in (logs, resume):
        assert found.returncode == FAILED and "flows/TrainFlow/1/run.json is damaged" in found.stderr, found.stderr
        assert "Traceback" not in found.stderr
    assert runs.returncode == SUCCEEDED and re.search(r"^2 +succeeded", runs.stdout, re.MULTILINE)


def test_files_that_cannot_be_written_are_told_before_anything_runs(shell: Shell) -> None:
    found = shell("train.py", "run", "--run-id-file", "nowhere/id.txt")

    assert found.returncode == WRONG and "nowhere/id.txt cannot be written" in found.stderr
    assert not (shell.folder / "store").exists()


def test_a_store_that_cannot_be_written_is_named(shell: Shell) -> None:
    shell.write("file", "")
    found = shell("train.py", "run", FLOWBOOK_STORE=str(shell.folder / "file"))

    assert found.returncode == FAILED and "Traceback" not in found.stderr and "error: " in found.stderr


def test_an_interrupt_before_the_run_starts_nothing(shell: Shell) -> None:
    source = TRAIN.replace(
        "default=0.1", "default=lambda context: __import__('time').sleep(600 if print('asked', flush=True) is None else 0)"
    )
    shell.write("slow.py", source)
    process = shell.start("slow.py", "run")
    until(process, "asked")

    process.send_signal(signal.SIGINT)
    _, err = process.communicate()

    assert process.returncode == INTERRUPTED and "nothing was started" in err and "Traceback" not in err


WAITS = ONE.format(name="WaitsFlow", body="print('ready', flush=True); import time; time.sleep(600)") + "WaitsFlow()"
STUBBORN = WAITS.replace("print('ready'", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready'")


def until(process: subprocess.Popen[str], word: str) -> list[str]:
    """The lines up to the one with that word."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"{word} never came: {lines}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
def test_a_signal_stops_the_run_tidily_and_says_how_to_go_on(shell: Shell, number: signal.Signals, code: int) -> None:
    shell.write("waits.py", WAITS)
    process = shell.start("waits.py", "run")
    until(process, "ready")

    process.send_signal(number)
    out, err = process.communicate()

    assert process.returncode == code
    assert "`python waits.py resume` goes on with it" in err and "Traceback" not in err
    assert "only ended: 1 stopped" in out
    listed = json.loads(shell("waits.py", "runs", "--json").stdout)
    assert listed["state"] == "stopped"


SIGNALS_ITSELF = """
import os, signal
import {module} as module

def and_interrupt(*given, before=module.{name}):
    os.kill(os.getpid(), signal.SIGINT)
    return before(*given)

module.{name} = and_interrupt
"""


def test_an_interrupt_between_the_runs_number_and_its_start_stops_it_tidily(shell: Shell) -> None:
    source = SIGNALS_ITSELF.format(module="flowbook.cli.run", name="_tell_run")
    shell.write("one.py", source + ONE.format(name="OneFlow", body="print('ran')") + "OneFlow()")
    found = shell("one.py", "run")

    assert found.returncode == INTERRUPTED and "run 1 was stopped" in found.stderr and "Traceback" not in found.stderr, found.stderr
    assert json.loads(shell("one.py", "runs", "--json").stdout)["state"] == "stopped"


@pytest.mark.parametrize("words", [["one.py", "run"], ["-m", "flowbook", "run", "one.py"]])
def test_an_interrupt_while_flowbook_is_imported_ends_quietly(shell: Shell, words: list[str]) -> None:
    (shell.folder / "site").mkdir()
    shell.write(
        "site/sitecustomize.py",
        """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "flowbook.cli.commands":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
""",
    )
    shell.write("one.py", ONE.format(name="OneFlow", body="pass") + "OneFlow()")
    found = shell(*words, PYTHONPATH=f"{shell.folder / 'site'}:{REPO}")

    assert (found.returncode, found.stderr) == (INTERRUPTED, "interrupted; nothing was started\n")


def test_the_second_signal_ends_a_task_that_does_not_heed_the_first(shell: Shell) -> None:
    shell.write("waits.py", STUBBORN)
    process = shell.start("waits.py", "run")
    until(process, "ready")

    process.send_signal(signal.SIGINT)
    until(process, "once more")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()

    assert process.returncode == INTERRUPTED and "ended at once" in out


def test_a_stopped_run_goes_on_where_it_was(shell: Shell) -> None:
    body = "import os, time; print('ready', flush=True); time.sleep(0 if os.path.exists('go') else 600)"
    shell.write("waits.py", ONE.format(name="WaitsFlow", body=body) + "WaitsFlow()")
    process = shell.start("waits.py", "run")
    until(process, "ready")
    process.send_signal(signal.SIGINT)
    process.communicate()
    shell.write("go", "")

    again = shell("waits.py", "resume")

    assert again.returncode == SUCCEEDED and "which goes on with run 1" in again.stdout


# ---- a terminal ---------------------------------------------------------------------------------------------------------------


def on_a_terminal(shell: Shell, *words: str, press: tuple[list[str], bytes] | None = None, **env: str) -> tuple[int, str]:
    """Run with a terminal of its own; `press`: once those words were shown, these keys are pressed."""
    leader, follower = pty.openpty()
    given = {**shell.env, "TERM": "xterm-256color", **env}
    command = [sys.executable, *words]
    process = subprocess.Popen(
        command,
        cwd=shell.folder,
        env=given,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        shown += data
        if press is not None and all(word.encode() in shown for word in press[0]):
            os.write(leader, press[1])
            press = None
        if not data:
            break
    os.close(leader)
    return process.wait(), shown.decode("utf-8", "replace")


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_gets_colours_and_a_live_table_that_is_gone_at_the_end(shell: Shell) -> None:
    body = "import os, time\n        print('ready', flush=True)\n        while not os.path.exists('go'): time.sleep(0.01)"
    shell.write("waits.py", ONE.format(name="WaitsFlow", body=body) + "WaitsFlow()")
    code, shown = on_a_terminal(shell, "waits.py", "run", press=(["1 running", "ready"], b"\x03"))

    assert code == INTERRUPTED
    assert "\x1b[36m[1/only/0]\x1b[0m ready" in shown
    assert "0 of 1" in shown and "\x1b[?25h" in shown  # the cursor is back
    assert "Ctrl-C: the run is being stopped" in shown


def test_a_short_run_on_a_terminal_needs_no_table(shell: Shell) -> None:
    shell.write("one.py", ONE.format(name="OneFlow", body="print('hello')") + "OneFlow()")
    code, shown = on_a_terminal(shell, "one.py", "run")

    assert code == SUCCEEDED and "hello" in shown and "\x1b[32m✓" in shown


def test_no_color_is_heeded(shell: Shell) -> None:
    shell.write("one.py", ONE.format(name="OneFlow", body="print('hello')") + "OneFlow()")
    code, shown = on_a_terminal(shell, "one.py", "run", NO_COLOR="1")

    assert code == SUCCEEDED and "\x1b" not in shown


# ---- looking ------------------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_and_by_tag_and_state(done: Shell) -> None:
    def listed(*words: str) -> list[str]:
        return [json.loads(line)["run"] for line in done("train.py", "runs", "--json", *words).stdout.splitlines()]

    assert listed() == ["3", "2", "1"]
    assert listed("--tag", "nightly") == ["1"]
    assert listed("--state", "failed") == ["2"]
    assert listed("-n", "1") == ["3"]
    shown = done("train.py", "runs").stdout.splitlines()
    assert shown[0].split()[:2] == ["run", "state"] and shown[2].split()[:2] == ["2", "failed"]


def test_a_list_of_runs_that_is_cut_says_so(done: Shell) -> None:
    assert done("train.py", "runs", "-n", "2").stdout.splitlines()[-1] == "… these are the newest 2 of 3 runs; -n 0 shows all"
    shown = done("train.py", "runs", "-n", "1", "--state", "succeeded").stdout
    assert shown.splitlines()[-1] == "… these are the newest 1 of those that fit; -n 0 shows all"
    assert "newest" not in done("train.py", "runs").stdout + done("train.py", "runs", "-n", "3").stdout


def test_a_run_is_running_until_its_process_is_gone_and_open_then(shell: Shell) -> None:
    body = "import os, time; print('ready', flush=True); time.sleep(0 if os.path.exists('go') else 600)"
    shell.write("waits.py", ONE.format(name="WaitsFlow", body=body) + "WaitsFlow()")
    process = shell.start("waits.py", "run")
    until(process, "ready")

    def states(*words: str) -> list[str]:
        return [json.loads(line)["state"] for line in shell("waits.py", "runs", "--json", *words).stdout.splitlines()]

    assert states() == states("--state", "running") == ["running"] and states("--state", "open") == []

    process.kill()
    process.communicate()
    assert states() == states("--state", "running") == states("--state", "open") == ["open"]
    said = shell("waits.py", "runs").stdout.splitlines()[-1]
    assert "the process that drove the run is gone" in said and "`python waits.py resume --origin-run-id 1`" in said
    shell.write("go", "")
    assert shell("waits.py", "resume", "--origin-run-id", "1").returncode == SUCCEEDED


def test_a_run_of_another_terminal_is_stopped_and_one_that_was_left_open_is_closed(shell: Shell) -> None:
    body = "import time; print('ready', flush=True); time.sleep(600)"
    shell.write("waits.py", ONE.format(name="WaitsFlow", body=body) + "WaitsFlow()")
    process = shell.start("waits.py", "run")
    until(process, "ready")
    refused = shell("waits.py", "resume")
    assert refused.returncode == WRONG and "run 1 of WaitsFlow is running, in another process of this machine" in refused.stderr
    stopped = shell("waits.py", "stop")
    assert (stopped.returncode, stopped.stdout) == (SUCCEEDED, "run 1 of WaitsFlow: asked to stop\n")
    assert "was stopped from elsewhere" in process.communicate()[1] and process.returncode == FAILED

    process = shell.start("waits.py", "run")
    until(process, "ready")
    process.kill()
    process.communicate()
    closed = shell.flowbook("stop", "WaitsFlow/2")
    assert closed.returncode == SUCCEEDED and "run 2 of WaitsFlow was stopped; what had succeeded is kept" in closed.stdout
    assert [json.loads(line)["state"] for line in shell("waits.py", "runs", "--json").stdout.splitlines()] == ["stopped", "stopped"]
    assert "run 2 of WaitsFlow has already ended" in shell("waits.py", "stop").stdout
    wrong = shell("waits.py", "stop", "7")
    assert wrong.returncode == WRONG and "there is no run '7' of WaitsFlow" in wrong.stderr


def test_without_a_file_the_store_is_asked_by_the_flows_name(done: Shell) -> None:
    assert done.flowbook("runs").stdout.splitlines() == ["TrainFlow"]
    assert [json.loads(line)["run"] for line in done.flowbook("runs", "TrainFlow", "--json").stdout.splitlines()] == ["3", "2", "1"]
    assert done.flowbook("logs", "TrainFlow/1/end").stdout == "[1/end/0] top 0.6 alpha 0.1\n"
    wrong = done.flowbook("logs", "TrianFlow/1/end")
    assert wrong.returncode == WRONG and "Did you mean 'TrainFlow'?" in wrong.stderr


def test_logs_are_those_of_a_task_of_a_step_or_of_the_run(done: Shell) -> None:
    assert done("train.py", "logs", "1/train/1").stdout == "training on 0.2\n"
    assert done("train.py", "logs", "TrainFlow/1/train/1").stdout == "training on 0.2\n"
    assert done("train.py", "logs", "1/train").stdout.splitlines()[0] == "[1/train/0] training on 0.1"
    assert done("train.py", "logs", "latest").stdout.splitlines()[-1] == "[3/end/0] top 0.6 alpha 0.1"


def test_a_path_may_be_written_as_people_write_it(done: Shell) -> None:
    assert done("train.py", "logs").stdout == done("train.py", "logs", "latest").stdout == done("train.py", "logs", "TrainFlow").stdout
    assert done("train.py", "logs", "end").stdout == done("train.py", "logs", "latest/end").stdout
    assert done("train.py", "logs", "1/train[1]").stdout == done("train.py", "logs", "1/train/1").stdout == "training on 0.2\n"
    assert done("train.py", "dump").stdout == done("train.py", "dump", "3").stdout
    assert done.flowbook("logs", "TrainFlow").stdout == done("train.py", "logs").stdout
    assert "which flow?" in done.flowbook("logs").stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3/i[1,1]", ["3", "i", "1.1"]),
        ("3/i/1,1", ["3", "i", "1.1"]),
        ("3/i/1.1", ["3", "i", "1.1"]),
        ("i[1, 12]", ["i", "1.12"]),
        ("/Flow/3/", ["Flow", "3"]),
        ("", []),
    ],
)
def test_the_parts_of_a_path(text: str, words: list[str]) -> None:
    assert place._words(text) == words


FAILS = """
import os
from flowbook import FlowSpec, Parameter, retry, step

class FailsFlow(FlowSpec):
    how = Parameter("how", default="raise")

    @retry(times=1, minutes_between_retries=0)
    @step
    def start(self):
        from flowbook import current
        if self.how == "kill":
            os.kill(os.getpid(), 9)
        if self.how == "raise" or current.retry_count == 0:
            raise ValueError(f"bad {current.retry_count}")
        print("well")
        self.next(self.end)

    @step
    def end(self):
        pass

FailsFlow()
"""


def test_logs_end_with_why_a_task_failed_and_name_the_attempts_that_failed_before(shell: Shell) -> None:
    shell.write("fails.py", FAILS)
    codes = [shell("fails.py", "run", "--how", how).returncode for how in ("raise", "kill", "once")]
    assert codes == [FAILED, FAILED, SUCCEEDED]

    raised = shell("fails.py", "logs", "1/start").stdout.splitlines()
    assert raised[0] == "[1/start/0] (attempt 1 failed: ValueError: bad 0; --attempt 1 shows it)"
    assert raised[-1] == "[1/start/0] ValueError: bad 1" and any('raise ValueError(f"bad' in line for line in raised)
    assert shell("fails.py", "logs", "1/start/0", "--attempt", "1").stdout.splitlines()[-1] == "ValueError: bad 0"
    killed = shell("fails.py", "logs", "2/start/0").stdout.splitlines()[-1]
    assert killed.startswith("attempt 2 failed: the process of start was killed by SIGKILL") and "@resources(memory=…)" in killed
    assert shell("fails.py", "logs", "3/start/0").stdout.splitlines() == [
        "(attempt 1 failed: ValueError: bad 0; --attempt 1 shows it)",
        "well",
    ]
    assert shell("fails.py", "logs", "1/end").stderr == "1/end did not run\n"
    assert "attempt 7 of 1/start/0 printed nothing" in shell("fails.py", "logs", "1/start/0", "--attempt", "7").stderr
    for word in ("0", "-1", "last"):
        wrong = shell("fails.py", "logs", "1/start/0", "--attempt", word)
        assert wrong.returncode == WRONG and "number of an attempt (1 or more)" in wrong.stderr, word


def test_dump_of_a_failed_run_marks_what_failed_and_shows_nothing_of_what_did_not_run(done: Shell) -> None:
    shown = done("train.py", "dump", "2").stdout.splitlines()

    assert "TrainFlow/2/train/1  (failed: ValueError: bad 0.2)" in shown and "TrainFlow/2/train/0" in shown
    assert shown[-1] == "not run: best, end" and not any(line.startswith("TrainFlow/2/end") for line in shown)
    some = done("train.py", "dump", "2", "--include", "score").stdout.splitlines()
    assert some == ["TrainFlow/2/train/0", "  score = 0.2", "TrainFlow/2/train/2", "  score = 0.6", "not run: best, end"]


@pytest.mark.parametrize(
    ("reason", "word", "other"), [("oom", "@resources(memory=…)", "--memory"), ("timeout", "@timeout(…)", "--timeout")]
)
def test_the_engine_names_the_decorators_of_a_class_and_the_options_of_a_cell(reason: str, word: str, other: str) -> None:
    cell = Step("a", "", "f", "f", Options(timeout_s=1.0))
    told = [scheduler._why(Task("a"), Exit(reason), step, Resources()) for step in (replace(cell, method="F"), cell)]

    assert word in told[0] and other not in told[0]
    assert other in told[1] and word not in told[1]


@pytest.mark.parametrize(("file", "told"), [("flow.py", "`resume`"), (None, "`%flow resume`")])
def test_the_engine_spells_the_way_on_as_the_run_was_started(file: str | None, told: str) -> None:
    run = scheduler.Run(MemoryStore(), "demo", "1", scheduler.Machine())
    run.state = RunState(Spec("demo", "1", (), program=file))

    assert run._resume == told


def test_what_was_taken_over_shows_what_its_maker_printed(shell: Shell) -> None:
    shell("train.py", "run")
    shell("train.py", "resume", "end")

    assert shell("train.py", "logs", "2/train/0").stdout == "training on 0.1\n"


def test_dump_shows_artifacts_parameters_included(done: Shell) -> None:
    shown = done("train.py", "dump", "1/train/1").stdout

    assert shown.splitlines() == ["TrainFlow/1/train/1", "  alpha = 0.1", "  fail_at = -1", "  rates = [0.1, 0.2, 0.3]", "  score = 0.4"]
    assert done("train.py", "dump", "1/end", "--include", "top").stdout.splitlines()[1:] == ["  top = 0.6"]


def test_show_and_graph_tell_what_leads_where(done: Shell) -> None:
    shown = done("train.py", "show").stdout
    assert all(
        word in shown for word in ["Train a model", "start  → train, for each of rates", "joins train", "--alpha: learning rate, 100% of"]
    )

    plain = done("train.py", "graph").stdout
    assert plain.splitlines() == ["start  → train, for each of rates", "  train  → best", "best (join)  → end", "end  (the end)"]
    assert json.loads(done("train.py", "graph", "--json").stdout)["steps"]["start"]["kind"] == "foreach"
    assert 'start -> train [label="each"];' in done("train.py", "graph", "--dot").stdout


def test_check_says_that_nothing_is_wrong(done: Shell) -> None:
    found = done("train.py", "check")

    assert found.returncode == SUCCEEDED and found.stdout.startswith("TrainFlow: 4 steps, nothing wrong")


def test_check_tells_what_has_no_effect_here_and_when_a_schedule_fires(shell: Shell) -> None:
    source = ONE.format(name="OneFlow", body="pass").replace("FlowSpec, step", "Config, FlowSpec, pypi, schedule, step")
    source = source.replace("class OneFlow", "@schedule(daily=True)\nclass OneFlow").replace(
        "    @step", "    settings = Config('settings', default_value={'a': 1}, help='of the flow')\n\n    @pypi(python='3.11')\n    @step"
    )
    shell.write("one.py", source + "OneFlow()")
    checked, shown = shell("one.py", "check"), shell("one.py", "show")

    assert checked.returncode == SUCCEEDED, checked.stderr
    assert checked.stdout.startswith("step only: @pypi") and "OneFlow: 1 step, nothing wrong" in checked.stdout
    assert re.search(r"next: \w{3} \d{4}-\d\d-\d\d", checked.stdout)
    assert "--config settings: of the flow" in shown.stdout and re.search(r"next: \w{3} \d{4}", shown.stdout)


def test_check_goes_by_the_same_cluster_as_run(shell: Shell) -> None:
    bucket = {"FLOWBOOK_STORE": "s3://some-bucket/x", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    source = ONE.format(name="OneFlow", body="pass").replace("FlowSpec, step", "FlowSpec, kubernetes, pypi, step")
    shell.write("one.py", source.replace("    @step", "    @pypi(packages={'pandas': '3.0'})\n    @step") + "OneFlow()")
    shell.write("wrong.py", source.replace("    @step", "    @kubernetes(namespace='No Name')\n    @step") + "OneFlow()")

    assert "@pypi has no effect here" in shell("one.py", "check", **bucket).stdout
    clustered = shell("one.py", "check", "--with", "kubernetes", **bucket)
    assert clustered.returncode == SUCCEEDED and clustered.stdout == "OneFlow: 1 step, nothing wrong\n", clustered
    assert "@kubernetes has no effect here" in shell("one.py", "check", "--with", "kubernetes").stdout
    wrong = shell("wrong.py", "check", **bucket)
    assert wrong.returncode == WRONG and "'No Name' is no name in Kubernetes" in wrong.stderr
    bad = shell("one.py", "check", "--with", "kubernetes", FLOWBOOK_KUBERNETES_TIERS='[{"gpus": -1}]', **bucket)
    assert bad.returncode == WRONG and "cannot be used" in bad.stderr and no_traceback_of_ours(bad.stderr)


def test_tags_are_added_removed_replaced_and_listed(shell: Shell) -> None:
    shell("train.py", "run", "--tag", "a")

    assert shell("train.py", "tag", "add", "b", "c").stdout == "run 1 of TrainFlow: a, b, c\n"
    assert shell("train.py", "tag", "remove", "a", "--run-id", "1").stdout == "run 1 of TrainFlow: b, c\n"
    assert shell("train.py", "tag", "replace", "c", "d").stdout == "run 1 of TrainFlow: b, d\n"
    assert shell("train.py", "tag", "list").stdout == "run 1 of TrainFlow: b, d\n"
    assert [json.loads(line)["tags"] for line in shell("train.py", "runs", "--json").stdout.splitlines()] == [["b", "d"]]


def test_package_lists_the_modules_that_go_along(shell: Shell) -> None:
    shell.write("beside.py", "X = 1\n")
    shell.write("one.py", "import beside\n" + ONE.format(name="OneFlow", body="print(beside.X)") + "OneFlow()")
    shell.write("other.py", "Y = 1\n")

    shown = shell("one.py", "package", "list").stdout

    assert "one.py" in shown and "beside.py" in shown and "other.py" not in shown and "in 2 files" in shown


def test_gc_tells_what_it_would_remove_and_removes_it(shell: Shell) -> None:
    for _ in range(2):
        shell("train.py", "run")

    assert "would remove 1 run of TrainFlow: 1" in shell("train.py", "gc", "--keep", "1", "--dry-run").stdout
    assert "removed 1 run of TrainFlow: 1" in shell("train.py", "gc", "--keep", "1").stdout
    assert [json.loads(line)["run"] for line in shell("train.py", "runs", "--json").stdout.splitlines()] == ["2"]


def test_old_runs_are_retired_after_a_run_once_enough_have_gathered(shell: Shell) -> None:
    shell.write("one.py", ONE.format(name="OneFlow", body="pass") + "OneFlow()")
    assert shell("one.py", "run", FLOWBOOK_KEEP_RUNS="2").returncode == SUCCEEDED
    [first] = (shell.folder / "store").glob("*/flows/OneFlow/1")
    for number in range(2, 8):
        shutil.copytree(first, first.parent / str(number))
    for spec in first.parent.glob("*/run.json"):
        os.utime(spec, (1e9, 1e9))  # a run that began less than a day ago is spared

    assert shell("one.py", "run", FLOWBOOK_KEEP_RUNS="2").returncode == SUCCEEDED
    assert [json.loads(line)["run"] for line in shell("one.py", "runs", "--json").stdout.splitlines()] == ["8", "7"]


def test_the_version_is_told(shell: Shell) -> None:
    assert shell.flowbook("version").stdout == shell.flowbook("--version").stdout
    assert shell("train.py", "--version").stdout.startswith("flowbook ")


def test_without_a_command_the_overview_is_shown_and_the_code_says_that_nothing_was_done(shell: Shell) -> None:
    assert shell("train.py").returncode == shell.flowbook().returncode == WRONG
    assert "usage: python train.py" in shell("train.py").stdout
    assert shell("train.py", "--help").returncode == SUCCEEDED


def test_a_command_that_needs_a_file_says_so(shell: Shell) -> None:
    found = shell.flowbook("run")

    assert found.returncode == WRONG and "`flowbook run FLOW.py …`" in found.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.py", "run"], "`flowbook run train.py`"),
        (["train.py:TrainFlow", "check"], "`flowbook check train.py:TrainFlow`"),
        (["train.py"], "`flowbook run train.py`"),
    ],
)
def test_a_file_before_the_command_is_answered_with_the_right_order(words: list[str], told: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(f"The command comes first: write {told}.")):
        arguments.split(words, "flowbook", commands.COMMANDS)


def test_a_pipe_that_closes_early_is_no_error(done: Shell) -> None:
    process = done.start("train.py", "logs", "latest")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()

    assert "Traceback" not in process.stderr.read()
    process.wait()


CARDS = """
from metaflow import FlowSpec, card, current, step
from metaflow.cards import Markdown

class CardFlow(FlowSpec):
    @card(type="blank", id="mine")
    @card
    @step(start=True, end=True)
    def only(self):
        current.card["mine"].append(Markdown("# Hello <there>"))
"""


def test_cards_are_listed_and_written_as_pages_and_metaflow_means_flowbook(shell: Shell) -> None:
    shell.write("cards.py", CARDS)
    assert shell.flowbook("run", "cards.py").returncode == SUCCEEDED

    assert shell.flowbook("card", "list", "CardFlow/1").stdout.split() == ["1/only/0", "default", "1/only/0", "mine"]
    saved = shell.flowbook("card", "cards.py", "get", "latest/only", "--id", "mine").stdout
    assert "Hello" in saved and "<title>CardFlow/1/only</title>" in saved
    assert shell.flowbook("card", "cards.py", "get", "1/only/0", "out.html").stdout == "out.html\n"
    assert "default-src 'none'" in (shell.folder / "out.html").read_text()
    assert Path(shell.flowbook("card", "view", "CardFlow/1").stdout.strip()).read_text().startswith("<!DOCTYPE html>")
    wrong = shell.flowbook("card", "get", "CardFlow/1", "--id", "mien")
    assert wrong.returncode == WRONG and "Did you mean 'mine'?" in wrong.stderr


PROGRESS = """
import os
from flowbook import FlowSpec, Parameter, card, current, retry, step, timeout

class TellFlow(FlowSpec):
    how = Parameter("how", default="well")

    @card(type="blank")
    @step
    def start(self):
        current.card.run.append("# What came *out*")
        self.xs = [1, 2]
        self.next(self.train, foreach="xs")

    @retry(times=0 if os.environ.get("SHORT") else 1, minutes_between_retries=0)
    @timeout(seconds=15 if os.environ.get("SHORT") else 600)
    @card(type="blank", id="loss", refresh_interval=0.01)
    @step
    def train(self):
        current.card.run.metric("score", self.input)
        current.card.append(f"attempt {current.retry_count} of {self.input}")
        current.card.refresh(force=True)
        while self.how != "well" and not os.path.exists(f"{os.environ['KEPT']}/train/{self.index}/{current.retry_count}/card-loss.json"):
            pass
        if self.how == "kill":
            os.kill(os.getpid(), 9)
        while self.how == "hang":
            pass
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

TellFlow()
"""


def test_a_card_is_one_file_without_another_word_and_that_of_the_run_stands_in_front(shell: Shell) -> None:
    shell.write("tell.py", PROGRESS)
    assert shell("tell.py", "run").returncode == SUCCEEDED

    whole = shell("tell.py", "card", "1")
    assert whole.returncode == SUCCEEDED and whole.stdout.startswith("<!DOCTYPE html>") and whole.stdout.endswith("</html>\n")
    assert whole.stdout.index("<em>out</em>") < whole.stdout.index("attempt 0 of 1") < whole.stdout.index("attempt 0 of 2")
    assert "train[1]" in whole.stdout.partition("attempt 0 of 1")[0], "the chart of the run has the lines of all tasks"
    one = shell.flowbook("card", "TellFlow/1/train[1]").stdout
    assert "attempt 0 of 2" in one and "attempt 0 of 1" not in one and "<em>out</em>" not in one
    assert shell("tell.py", "card", "--id", "run", "1").stdout.count('class="fbc-head"') == 1
    assert shell("tell.py", "card", "list", "1").stdout.split() == [
        "1",
        "run",
        "1/start/0",
        "blank",
        "1/train/0",
        "loss",
        "1/train/1",
        "loss",
    ]
    assert shell("tell.py", "card", "train", "out.html").stdout == "out.html\n"
    for page in (whole.stdout, (shell.folder / "out.html").read_text()):
        assert "<script" not in page and "https://" not in page and "default-src 'none'" in page
    for words, why in (
        (["card"], "required"),
        (["card", "1/trian"], "Did you mean 'train'?"),
        (["card", "veiw", "1/train"], "there is no run 'veiw'"),
        (["card", "1/end"], "no card"),
        (["card", "1/train/7"], "has no task '7'"),
        (["card", "1/train", "--id", "los"], "Did you mean 'loss'?"),
        (["card", "1/train", "no/such/folder.html"], "it cannot be written: No such file"),
        (["report", "1/train"], "is not RUN"),
        (["report", "9"], "there is no run '9'"),
        (["report", "-o", "no/such/folder.html"], "it cannot be written: No such file"),
        (["report", "--out"], "there is no option --out"),
    ):
        wrong = shell("tell.py", *words)
        assert wrong.returncode == WRONG and why in wrong.stderr and wrong.stdout == "", (words, wrong.stderr)
    assert not (shell.folder / "1").exists()


def test_a_whole_run_is_written_as_one_file(shell: Shell) -> None:
    shell.write("tell.py", PROGRESS)
    assert shell("tell.py", "run").returncode == SUCCEEDED

    assert shell("tell.py", "report").stdout == "TellFlow-1.html\n"
    assert shell.flowbook("report", "TellFlow/1", "-o", "all.html").stdout == "all.html\n"
    printed = shell("tell.py", "report", "latest", "-o", "-").stdout
    pages = [(shell.folder / name).read_text() for name in ("TellFlow-1.html", "all.html")]
    assert pages == [printed, printed] and printed.startswith("<!DOCTYPE html>")
    assert "Card of the run" in printed and "<em>out</em>" in printed and "attempt 0 of 2" in printed and "<script" not in printed


@pytest.mark.parametrize(("how", "short", "told"), [("kill", "", "was killed by SIGKILL"), ("hang", "1", "timeout: ")])
def test_the_last_card_of_an_attempt_that_was_ended_from_outside_has_its_error_added(shell: Shell, how: str, short: str, told: str) -> None:
    shell.write("tell.py", PROGRESS)
    kept = str(shell.folder / "store" / "default" / "flows" / "TellFlow" / "1")
    assert shell("tell.py", "run", "--how", how, KEPT=kept, SHORT=short).returncode == FAILED

    for page in (shell("tell.py", "card", "1/train").stdout, shell("tell.py", "report", "-o", "-").stdout.partition("<h2>Cards</h2>")[2]):
        last = "card loss · failed" if short else "attempt 2 · card loss · failed"
        assert f"attempt {0 if short else 1} of 1" in page and last in page
        assert told in page and "running" not in page.partition("</head>")[2]


def test_a_notebook_that_is_not_there_is_not_exported(shell: Shell) -> None:
    found = shell.flowbook("export", "nothing.ipynb")

    assert found.returncode == WRONG and "there is no such file" in found.stderr


def test_the_page_of_the_command_line_explains_every_command_and_code() -> None:
    page = (REPO / "docs" / "cli.md").read_text()

    assert [name for name in commands.COMMANDS if not re.search(rf"[` |]{name}[ `]", page)] == []
    codes = {SUCCEEDED, FAILED, WRONG, NOT_CONFIGURED, INTERRUPTED, TERMINATED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == codes
    assert [name for name in arguments.IGNORED if name not in page and "force-rebuild" not in name] == []


# ---- one step alone -----------------------------------------------------------------------------------------------------------


def test_one_step_runs_alone_and_leaves_no_run(shell: Shell) -> None:
    found = shell("train.py", "test", "train", "--input", "input=0.5")

    assert found.returncode == SUCCEEDED, found.stderr
    assert found.stdout.splitlines() == ["training on 0.5", "score = 1.0", "next: best"]
    assert not (shell.folder / "store").exists()


def test_a_join_alone_gets_its_inputs_as_a_list(shell: Shell) -> None:
    found = shell("train.py", "test", "best", "--input", 'inputs=[{"score": 1}, {"score": 4}]')

    assert "top = 4" in found.stdout.splitlines()


def test_a_step_alone_that_misses_an_artifact_says_how_to_give_it(shell: Shell) -> None:
    alone, join = shell("train.py", "test", "end"), shell("train.py", "test", "best", "--input", "inputs=[{}]")

    assert (alone.returncode, join.returncode) == (FAILED, FAILED)
    assert alone.stderr.splitlines()[-1] == "error: step end reads top, which was not given. Give it: --input top=…"
    assert join.stderr.splitlines()[-1].endswith("""Give it: --input 'inputs=[{"score": …}, …]'""")


def test_a_step_alone_that_fails_shows_the_users_traceback(shell: Shell) -> None:
    found = shell("train.py", "test", "train", "--input", "input=0.5", "--fail_at", "0")

    assert found.returncode == FAILED
    assert 'raise ValueError(f"bad {self.input}")' in found.stderr and "error: step train: ValueError: bad 0.5" in found.stderr


# ---- what an import costs -----------------------------------------------------------------------------------------------------


def test_a_run_in_a_pipe_loads_nothing_that_it_does_not_need(shell: Shell) -> None:
    """rich, IPython, pandas, numpy: none of them for a plain run."""
    seen = "import atexit, sys; atexit.register(lambda: print(sorted({m.split('.')[0] for m in sys.modules} & set(%r)), file=sys.stderr))\n"
    heavy = ["rich", "IPython", "pandas", "numpy", "cloudpickle", "webbrowser", "psutil", "ipykernel", "nbformat"]
    shell.write("one.py", seen % heavy + ONE.format(name="OneFlow", body="pass") + "OneFlow()")

    assert shell("one.py", "run").stderr == "[]\n"
