"""Runner, which starts runs of a flow file as processes, and run_step, which calls one step of a class in this process."""

from __future__ import annotations

import asyncio
import datetime
import enum
import importlib.util
import os
import threading
from pathlib import Path

import pytest

from flowbook import FlowSpec, Parameter, Runner, StepFailed, build, current, step, testing
from flowbook.errors import ArtifactError, DefinitionError, FlowbookError
from flowbook.runner import RunNotStarted, _words
from flowbook.testing import run_step

FLOW = """
from flowbook import FlowSpec, Parameter, step

class SweepFlow(FlowSpec):
    alpha = Parameter("alpha", default=0.1)
    label = Parameter("label", default="plain")

    @step
    def start(self):
        print("starting", self.alpha, self.label)
        self.xs = [1, 2]
        self.next(self.double, foreach="xs")

    @step
    def double(self):
        self.y = self.input * 2
        self.next(self.end)

    @step
    def end(self, inputs):
        self.total = sum(each.y for each in inputs)
        if self.alpha < 0:
            raise ValueError("alpha is below zero")
"""
WAITS = """
import time
from flowbook import FlowSpec, step

class WaitsFlow(FlowSpec):
    @step(start=True, end=True)
    def only(self):
        print("ready", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "sweep.py").write_text(FLOW)
    return str(tmp_path / "sweep.py")


# ---- Runner -------------------------------------------------------------------------------------------------------------------


def test_a_run_is_started_with_parameters_and_tags_and_read_with_the_client(file: str) -> None:
    with Runner(file, show_output=False).run(alpha=0.5, label="-odd one", tags=["nightly", "b"]) as running:
        assert (running.status, running.returncode) == ("successful", 0)
        assert running.run.data.total == 6
        assert {"nightly", "b"} <= set(running.run.tags)
        assert "[1/start/0] starting 0.5 -odd one" in running.stdout
        assert running.stderr == ""

    assert "starting 0.5" in running.stdout  # also when the folder is gone


def test_a_run_that_fails_is_no_error_of_the_runner(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Runner(file) as runner:
        running = runner.run(alpha=-1)

        assert running.status == "failed" and not running.run.successful
        assert "ValueError: alpha is below zero" in running.stderr
        assert "alpha is below zero" in capsys.readouterr().err  # show_output

        again = runner.resume(alpha=2, origin_run_id=running.run.id)
        assert again.status == "successful" and again.run.id == "2"


def test_a_run_is_followed_line_by_line_and_stopped_when_it_is_left(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WAITS)

    async def scene() -> tuple[str, str]:
        async with Runner(tmp_path / "waits.py") as runner:
            running = await runner.async_run()
            async for position, line in running.stream_log("stdout"):
                if "ready" in line:
                    assert position > len(line)
                    break
            assert running.status == "running"
            assert (await running.wait(timeout=0.01)).status == "timeout"
            state = running.run.state
        return state, running.status

    assert asyncio.run(scene()) == ("running", "failed")


def test_waiting_prints_a_stream(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene() -> str:
        async with Runner(file) as runner:
            return (await (await runner.async_run()).wait(stream="stdout")).status

    assert asyncio.run(scene()) == "successful"
    assert "run 1 of SweepFlow succeeded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"alhpa": 1}, "Did you mean '--alpha'?"),
        ({"alpha": "fast"}, "a number is expected"),
        ({"max_workers": 0}, "number of workers"),
        ({"decospecs": ["kubernetes"]}, "no cluster is set up"),
    ],
)
def test_what_cannot_be_run_raises_what_the_command_line_says(file: str, given: dict[str, object], told: str) -> None:
    with pytest.raises(RunNotStarted, match="was not run") as caught:
        Runner(file).run(**given)

    assert told in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_file_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="there is no such file"):
        Runner(tmp_path / "nothing.py")


def test_a_file_that_raises_shows_the_users_traceback(tmp_path: Path) -> None:
    (tmp_path / "raises.py").write_text("1 / 0")

    with pytest.raises(RunNotStarted, match="ZeroDivisionError"):
        Runner(tmp_path / "raises.py").run()


def test_an_unknown_stream_is_refused(file: str) -> None:
    with Runner(file, show_output=False).run() as running, pytest.raises(DefinitionError, match="Streams: stdout, stderr"):
        running._file("output")


class Colour(enum.Enum):
    RED = 1


def test_values_are_written_as_the_command_line_reads_them() -> None:
    given = {
        "flag": True,
        "none": None,
        "day": datetime.date(2026, 1, 31),
        "colour": Colour.RED,
        "xs": [1, "a"],
        "path": Path("/x"),
        "tags": ["a b"],
        "max_workers": 3,
        "quiet": True,
    }

    words = ["--flag=true", "--day=2026-01-31", "--colour=RED", '--xs=[1, "a"]', "--path=/x", "--tag=a b", "--max-workers=3", "--quiet"]
    assert _words(given) == words


# ---- run_step -----------------------------------------------------------------------------------------------------------------


def train_model(lr: float) -> float:
    return lr * 10


class TestedFlow(FlowSpec):
    """Steps of every shape, for the tests below."""

    __test__ = False
    factor = Parameter("factor", default=2)
    constant = 5
    what = "neither"

    @step
    def start(self):
        self.rates, self.offset, self.log = [0.1, 0.2], 1, ["start"]
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        print("training", self.input, self.index, current.step_name)
        self.model = train_model(self.input) * self.factor + self.offset
        self.next(self.join)

    @step
    def join(self, inputs):
        self.best = max(inputs, key=lambda each: each.model)
        self.merge_artifacts(inputs, include=["shared"])
        self.next(self.left, self.right)

    @step
    def left(self):
        self.lock = threading.Lock()
        self.next(self.both)

    @step
    def right(self):
        self.log.append("right")
        self.next(self.both)

    @step
    def both(self, inputs):
        self.sum = inputs.left.x + inputs.right.x
        self.next({"more": self.again, "done": self.end}, condition="what")

    @step
    def again(self):
        self.next(self.end)

    @step
    def end(self):
        raise ValueError("at the end")


def test_a_step_is_called_with_its_artifacts_its_item_and_its_parameters() -> None:
    result = run_step(TestedFlow, "train", inputs={"offset": 1}, input=0.5, params={"factor": 3})

    assert result.model == 16.0 and result.next == ["join"]
    assert result.output == "training 0.5 0 train\n"
    assert dict(result.artifacts) == {"model": 16.0}


def test_what_a_test_replaces_is_what_the_step_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.train_model", lambda lr: 100.0)

    assert run_step(TestedFlow, "train", inputs={"offset": 0}, input=0.5).model == 200.0


def test_a_fan_out_gives_its_items() -> None:
    result = run_step(TestedFlow, "start")

    assert (result.next, result.items, result.rates) == (["train"], [0.1, 0.2], [0.1, 0.2])


def test_a_join_of_a_fan_out_takes_a_list_and_may_merge() -> None:
    result = run_step(TestedFlow, "join", inputs=[{"model": 1, "shared": "s"}, {"model": 3, "shared": "s"}])

    assert result.best.model == 3 and result.shared == "s" and result.next == ["left", "right"]


def test_a_merge_that_conflicts_fails_as_in_a_run() -> None:
    with pytest.raises(FlowbookError, match="the inputs differ in shared"):
        run_step(TestedFlow, "join", inputs=[{"model": 1, "shared": "s"}, {"model": 3, "shared": "t"}])


def test_a_join_of_branches_takes_a_dict_or_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FlowbookError, match="what"):
        run_step(TestedFlow, "both", inputs={"left": {"x": 1}, "right": {"x": 2}})

    class Chooses(TestedFlow):
        what = "more"

    assert run_step(Chooses, "both", inputs=[{"x": 1}, {"x": 2}]).sum == 3
    assert run_step(Chooses, "both", inputs={"left": {"x": 1}, "right": {"x": 2}}).next == ["again"]


def test_what_is_changed_in_place_is_left_too() -> None:
    assert run_step(TestedFlow, "right", inputs={"log": ["start"]}).log == ["start", "right"]


def test_an_error_of_the_method_reaches_the_test() -> None:
    with pytest.raises(ValueError, match="at the end"):
        run_step(TestedFlow, "end")


def test_what_cannot_be_stored_fails_the_test_with_its_name() -> None:
    with pytest.raises(ArtifactError, match="self.lock cannot be saved"):
        run_step(TestedFlow, "left")


def test_nothing_of_the_task_stays_behind() -> None:
    run_step(TestedFlow, "start")

    assert not current.is_running_flow


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("trian", {}, "Did you mean 'train'?"),
        ("train", {"params": {"fcator": 1}}, "factor"),
        ("train", {"params": {"factor": "x"}}, "a whole number is expected"),
        ("train", {"inputs": [{"offset": 1}]}, "is no join"),
        ("start", {"inputs": {"x": 1}}, "is the first"),
        ("start", {"input": 1}, "is in no foreach"),
        ("join", {"inputs": {"model": 1}}, "a list of dicts, one a task"),
        ("join", {}, "a list of dicts, one a task"),
        ("train", {}, "is in a foreach: give the item"),
        ("train", {"inputs": {"offset": 1}}, "Of run_step: input=…"),
        ("both", {"inputs": [{"x": 1}]}, "In this order: left, right"),
        ("both", {"inputs": {"lfet": {"x": 1}}}, "a dict branch"),
        ("both", {"inputs": {"left": 3}}, "a dict branch"),
    ],
)
def test_what_a_step_cannot_have_is_refused(name: str, given: dict[str, object], told: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        run_step(TestedFlow, name, **given)  # type: ignore[arg-type]

    assert told in str(caught.value)


def test_a_missing_artifact_has_a_note_that_tells_how_to_give_it() -> None:
    with pytest.raises(AttributeError, match="self.offset is not set") as alone:
        run_step(TestedFlow, "train", input=0.5)
    with pytest.raises(AttributeError, match="has no artifact 'x'") as joined:
        run_step(TestedFlow, "both", inputs=[{"x": 1}, {}])

    assert alone.value.__notes__ == ["run_step gave step train no offset. Give it: inputs={'offset': …}"]
    assert joined.value.__notes__ == ["run_step gave step both no x. Give it: inputs=[{'x': …}, …]"]


def test_an_item_may_be_none() -> None:
    with pytest.raises(TypeError):
        run_step(TestedFlow, "train", inputs={"offset": 1}, input=None)


def test_an_artifact_that_was_not_left_is_named_with_those_that_were() -> None:
    with pytest.raises(AttributeError, match="left no artifact 'modle'. It left: log, offset, rates"):
        run_step(TestedFlow, "start").modle  # noqa: B018


WORKER = """
import os
from flowbook import FlowSpec, Parameter, environment, step

class EnvFlow(FlowSpec):
    ok = Parameter("ok", default=True)

    @environment(vars={"WORD": "of the step"})
    @step(start=True, end=True)
    def only(self):
        self.word, self.pid = os.environ["WORD"], os.getpid()
        print(self.word)
        assert self.ok, "not so"
"""


def test_an_attempt_in_a_worker_of_its_own_has_the_environment_of_the_step(tmp_path: Path) -> None:
    file = tmp_path / "env_flow.py"
    file.write_text(WORKER)
    spec = importlib.util.spec_from_file_location("env_flow", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = build.program_of(module.EnvFlow, file=str(file))

    result = testing.attempt(program, "only", params={"ok": True})

    assert (result.word, result.output, result.next) == ("of the step", "of the step\n", [])
    assert result.pid != os.getpid()
    with pytest.raises(StepFailed, match="step only: AssertionError: not so"):
        testing.attempt(program, "only", params={"ok": False})
