"""The seed, block by block: tests/seed/ has each as a flow file, as written, with the functions that train supplied beside it.

Each runs as ``python FILE run``, and with `metaflow` in place of `flowbook` as ``flowbook run FILE``.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowbook import build, cards, client
from flowbook.spec.flow import Card, Checkpoint, Options, Resources
from flowbook.store import layout
from flowbook.store.files import FilesStore

HERE = Path(__file__).parent
SEED = HERE / "seed"
FLOWS = sorted(path.stem for path in SEED.glob("*_flow.py"))
DECORATORS = ("@retry", "@checkpoint", "@resources(gpu=1)", "@card")
ORDERS = list(itertools.permutations(DECORATORS))


class Folder:
    """The seed's files in a folder of their own, and a store."""

    def __init__(self, folder: Path, library: str) -> None:
        self.path, self.library = folder / "seed", library
        shutil.copytree(SEED, self.path, ignore=shutil.ignore_patterns("__pycache__"))
        for file in self.path.glob("*.py"):
            file.write_text(file.read_text().replace("from flowbook", f"from {library}"))
        self.environ = {**os.environ, "FLOWBOOK_STORE": str(folder / "store"), "PYTHONPATH": str(HERE.parent)}
        self.store = FilesStore(folder / "store" / "default")

    def call(self, file: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """``python FILE.py WORDS``; of a file that says metaflow, ``flowbook WORDS FILE.py``."""
        name, _, cls = file.partition(":")
        plain = [word for word in words if word not in ("run", "check", "show")]
        command = next(word for word in words if word not in plain)
        if self.library == "flowbook" and not cls:
            call = [sys.executable, f"{name}.py", *words]
        else:
            call = [sys.executable, "-m", "flowbook", *plain, command, f"{name}.py{':' if cls else ''}{cls}"]
        env = self.environ | environ
        return subprocess.run(call, cwd=self.path, env=env, capture_output=True, text=True, check=False)

    def run(self, file: str, **environ: str) -> str:
        done = self.call(file, "run", **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def made(self, flow: str) -> client.Run:
        return client.Run(f"{flow}/1", store=self.store)


@pytest.fixture(params=["flowbook", "metaflow"])
def seed(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path, request.param)


@pytest.fixture
def own(tmp_path: Path) -> Folder:
    return Folder(tmp_path, "flowbook")


# ---- each block -------------------------------------------------------------------------------------------------------------


def test_the_first_flow_trains_and_tells_its_accuracy(seed: Folder) -> None:
    said = seed.run("train_flow")

    assert "Training complete. Accuracy: 0.991" in said
    run = seed.made("TrainFlow")
    assert run.successful and run.data.epochs == 50
    assert run["train"].task.data.accuracy == 0.991


def test_a_foreach_picks_the_best_of_its_inputs_and_keeps_it_as_a_reference(seed: Folder) -> None:
    said = seed.run("foreach_flow")

    assert "Best LR: 0.01, Score: 1.0" in said
    run = seed.made("ForeachFlow")
    assert [task.data.lr for task in run["train"].tasks()] == [0.001, 0.01, 0.1]
    assert run.data.rate_of_best == 0.01, "a later step reads the winner's artifacts through the reference"
    assert run.data.best.score == 1.0, "and so does the client"


def test_a_card_is_updated_while_the_step_trains_and_ends_with_the_last_epoch(seed: Folder) -> None:
    seed.run("card_flow")

    (key,) = seed.store.list(layout.card_prefix("CardFlow", "1", "train", (), 0))
    text = seed.store.get(key).decode()
    content = cards.read(seed.store.get(key))
    assert content["type"] == "blank"
    assert "Epoch 4/5" in text and "Epoch 3/5" not in text and "0.2000" in text


def test_a_step_with_retry_runs_once_if_it_does_not_fail(seed: Folder) -> None:
    seed.run("retry_flow")

    assert seed.made("RetryFlow")["train"].task.current_attempt == 0


def test_training_that_is_killed_at_epoch_45_goes_on_there(seed: Folder) -> None:
    seed.run("checkpoint_flow", DIE_AT="45")

    lines = (seed.path / "epochs.log").read_text().split()
    first, second = lines[0], lines[-1]
    assert (lines.count(first), lines.count(second)) == (46, 5), "45 epochs and the one that was killed; then 45 to 49"
    assert seed.made("CheckpointFlow")["train"].task.current_attempt == 1


def test_more_than_this_machine_has_is_asked_for_and_the_flow_runs(seed: Folder) -> None:
    said = seed.run("resources_flow")

    assert seed.made("ResourcesFlow").successful
    assert "gpu 4 asked" in said


@pytest.mark.parametrize(
    ("file", "flow", "told"),
    [
        ("weekly_flow:WeeklyTrainFlow", "WeeklyTrainFlow", "Monday"),
        ("retrain_flow:RetrainFlow", "RetrainFlow", "new_training_data"),
        ("retrain_flow:TrainAfterPrepFlow", "TrainAfterPrepFlow", "DataPrepFlow"),
    ],
)
def test_what_starts_a_flow_is_told_and_the_flow_runs_without_it(seed: Folder, file: str, flow: str, told: str) -> None:
    shown = seed.call(file, "show")
    assert shown.returncode == 0 and told in shown.stdout, shown.stdout + shown.stderr

    seed.run(file)

    assert seed.made(flow).successful


@pytest.mark.parametrize("words", [("--with", "kubernetes", "run"), ("run", "--with", "kubernetes")], ids=" ".join)
def test_a_run_with_kubernetes_says_what_is_not_set_up_and_runs_nothing(seed: Folder, words: tuple[str, ...]) -> None:
    done = seed.call("train_flow", *words)

    assert done.returncode == 3, done.stdout + done.stderr
    assert "kubernetes" in done.stderr and "no cluster" in done.stderr and "Traceback" not in done.stderr
    assert not list(seed.store.list("flows/"))


# ---- what the decorators say ------------------------------------------------------------------------------------------------


def loaded(path: Path) -> ModuleType:
    """A flow file as a module; its flows are not started."""
    spec = importlib.util.spec_from_file_location(f"seed_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def options(own: Folder, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Options]:
    """The options of a step of one of the files: of its only flow."""
    monkeypatch.syspath_prepend(str(own.path))

    def of(file: str, step: str) -> Options:
        module = loaded(own.path / f"{file}.py")
        (cls,) = (value for name, value in vars(module).items() if name.endswith("Flow"))
        program = build.program_of(cls)
        program.check()
        return program.options[step]

    return of


def test_the_seeds_numbers_are_read_as_it_says(options: Callable[[str, str], Options]) -> None:
    assert options("resources_flow", "standard").resources == Resources(cpu=16, memory_mb=64_000, gpu=1)  # "64 GB"
    assert options("resources_flow", "top").resources == Resources(cpu=64, memory_mb=256_000, gpu=4)
    assert options("resources_flow", "scratch").resources.disk_mb == 1_000_000  # "~1 TB"
    retry = options("retry_flow", "train").retry
    assert (retry.times, retry.minutes_between_retries) == (3, 5)
    assert options("card_flow", "train").cards == (Card(type="blank", refresh_interval_s=5),)
    assert options("checkpoint_flow", "train").checkpoint == Checkpoint()


# ---- the order of decorators ------------------------------------------------------------------------------------------------


def orders_file(decorators: list[tuple[str, ...]], library: str = "flowbook") -> str:
    """A flow with a branch for each order of decorators. Each fails once after it has saved, and shows where it went on."""
    names = [f"order_{n}" for n in range(len(decorators))]
    targets = ", ".join(f"self.{name}" for name in names)
    parts = [
        f"from {library} import FlowSpec, step, resources, card, retry, checkpoint, save_checkpoint, load_checkpoint, current\n\n"
        "class OrdersFlow(FlowSpec):\n    @step\n    def start(self):\n"
        f"        self.next({targets})\n"
    ]
    for name, above in zip(names, decorators, strict=True):
        lines = "\n".join(f"    {line}" for line in above).replace("@retry", "@retry(times=1, minutes_between_retries=0)")
        parts.append(f"""
{lines}
    @step
    def {name}(self):
        self.went_on = load_checkpoint()
        current.card.append(f"attempt {{current.retry_count}}")
        current.card.refresh()
        if current.retry_count == 0:
            save_checkpoint(state="saved")
            raise ValueError("once")
        self.next(self.join)
""")
    parts.append("""
    @step
    def join(self, inputs):
        self.went_on = [each.went_on for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OrdersFlow()
""")
    return "".join(parts)


def test_there_are_24_orders() -> None:
    assert len(set(ORDERS)) == 24


def test_the_order_of_decorators_means_nothing(own: Folder) -> None:
    file = own.path / "orders.py"
    file.write_text(orders_file(ORDERS))

    program = build.program_of(loaded(file).OrdersFlow)

    program.check()
    options = {program.options[f"order_{n}"] for n in range(len(ORDERS))}
    assert len(options) == 1
    (one,) = options
    assert (one.retry.times, one.resources.gpu, len(one.cards), one.checkpoint) == (1, 1, 1, Checkpoint())


def test_each_order_of_decorators_retries_goes_on_and_has_its_card(seed: Folder) -> None:
    (seed.path / "orders.py").write_text(orders_file(ORDERS, seed.library))

    seed.run("orders")

    run = seed.made("OrdersFlow")
    assert run.data.went_on == ["saved"] * 24
    for n in range(24):
        keys = [*seed.store.list(layout.card_prefix("OrdersFlow", "1", f"order_{n}", (), 1))]
        assert len(keys) == 1 and b"attempt 1" in seed.store.get(keys[0])


def test_every_file_of_the_seed_is_checked_and_run_here() -> None:
    text = Path(__file__).read_text()

    assert [name for name in FLOWS if f'"{name}' not in text] == []


def test_step_may_stand_anywhere_among_the_decorators(own: Folder) -> None:
    above: list[Any] = [("@step", *ORDERS[0]), (*ORDERS[0][:2], "@step", *ORDERS[0][2:])]
    text = orders_file(above)
    # The generated file has @step closest to each method, too; twice means no more than once.
    file = own.path / "anywhere.py"
    file.write_text(text)

    program = build.program_of(loaded(file).OrdersFlow)

    program.check()
    assert program.options["order_0"] == program.options["order_1"]
