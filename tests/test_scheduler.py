"""Runs driven for real: a files store, and workers that are processes (a small script that obeys ORDER) or coroutines."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowbook.engine import events
from flowbook.engine.admission import Capacity
from flowbook.engine.events import Task
from flowbook.engine.launch.local import Attempt, Exit, Frame, LocalLauncher
from flowbook.engine.scheduler import Launcher, Machine, Place, Run, last_lines
from flowbook.engine.state import fold
from flowbook.errors import StoreFull
from flowbook.spec.flow import Foreach, Input, Options, Resources, Retry, Spec, Step, to_json
from flowbook.store import layout
from flowbook.store.files import FilesStore

WORKER = """
import json, os, signal, sys, time
order = json.loads(sys.stdin.buffer.read())
spec = json.load(open(f"{order['store']['root']}/flows/{order['flow']}/{order['run']}/run.json"))
step = next(s for s in spec["steps"] if s["name"] == order["step"])
plans = {}
def frame(**fields):
    os.write(order["frames_fd"], json.dumps(fields).encode() + b"\\n")
def commit(**names):
    task = ".".join(map(str, order["index"])) or "0"
    path = f"{order['store']['root']}/flows/{order['flow']}/{order['run']}/{order['step']}/{task}{'' if order['part'] == 'body' else '.plan'}.COMMIT"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    made = {"v": 1, "attempt": order["attempt"], "artifacts": {n: {"kind": "json", "json": v} for n, v in names.items()}, "plans": plans}
    with open(f"{path}.{os.getpid()}.tmp", "w") as file:
        json.dump(made, file)
    try:
        os.link(file.name, path)
    finally:
        os.unlink(file.name)
    frame(f="committed")
def read(name):
    where = order["inputs"][name]
    task = ".".join(map(str, where["index"])) or "0"
    path = f"{order['store']['root']}/flows/{order['flow']}/{where['run']}/{where['step']}/{task}.COMMIT"
    return json.load(open(path))["artifacts"][name]["json"]
exec(step["source"])
"""


class Bench:
    """A store, a machine and the runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FilesStore(folder / "project")
        self.store.create(layout.blob("h"), b"the items of every sweep here")
        self.said: list[dict[str, Any]] = []
        script = folder / "worker.py"
        script.write_text(WORKER)
        self.worker: Launcher = LocalLauncher(worker=(sys.executable, "-P", str(script)), grace_s=1.0)
        self.machine = Machine(self.worker, Capacity(cores=4, memory_mb=8000))

    def run(self, *steps: Step, run: str = "1", patience_s: float = 5.0, env: dict[str, str] | None = None, **fields: Any) -> Run:
        spec = Spec("demo", run, steps, **fields)
        self.store.create(layout.spec("demo", run), json.dumps(to_json(spec)).encode())
        place = Place({"PATH": os.environ["PATH"], **(env or {})}, str(self.folder))
        return Run(self.store, "demo", run, self.machine, place, say=self.said.append, patience_s=patience_s)

    def drive(self, *steps: Step, **fields: Any) -> Run:
        run = self.run(*steps, **fields)
        asyncio.run(asyncio.wait_for(run.drive(), 60))
        return run

    def log(self, run: str = "1") -> list[dict[str, Any]]:
        return [e for key in self.store.list(layout.log_prefix("demo", run)) for e in events.unbatch(self.store.get(key), key)]

    def happened(self, run: str = "1") -> list[str]:
        return [" ".join([e["e"], *([str(events.task_of(e))] if e.get("step") else [])]) for e in self.log(run)]

    def troubles(self) -> list[str]:
        return [m["message"] for m in self.said if m["say"] == "trouble"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def step(name: str, source: str = "commit()", reads: str = "", **options: Any) -> Step:
    """`reads`: "x:maker y:maker"."""
    fields = {
        key: options.pop(key)
        for key in ("saves", "host", "hosted", "scope", "plan_inputs", "key", "plan_key", "parts", "watch")
        if key in options
    }
    fields.setdefault("key", f"{name} {source}")
    inputs = tuple(Input(word.split(":")[0], (word.split(":")[1],)) for word in reads.split())
    return Step(name, source, f"<{name}>", f"Cell {name}", Options(**options), inputs=inputs, **fields)


def sweep(width: int, body: str = "commit(y=1)", **options: Any) -> tuple[Step, Step, Step]:
    """start → train per item → best."""
    return (
        step("start", f"plans['train'] = {{'count': {width}, 'items': 'h'}}\ncommit(xs=1)", saves=("xs",), hosted=("train",)),
        step(
            "train",
            body,
            foreach=Foreach("x", "xs", ("x",)),
            scope=("train",),
            host="start",
            plan_inputs=(Input("xs", ("start",)),),
            **options,
        ),
        step("best", "print(order['joins']['train']['count'])\ncommit()", join=("train",)),
    )


def error(run: Run, name: str, *index: int) -> dict[str, Any]:
    assert run.state is not None
    found = run.state.tasks[Task(name, index)].error
    assert isinstance(found, dict)
    return found


async def until(seen: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


# ---- a run --------------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_to_its_end_and_its_log_tells_all(bench: Bench) -> None:
    run = bench.drive(*sweep(3))

    happened = bench.happened()
    assert happened[0] == "run_started" and happened[-1] == "run_ended"
    assert [h for h in happened if "train" in h and "succeeded" in h] and happened.count("launched best") == 1
    assert bench.store.get(layout.output("demo", "1", "best", (), 0)) == b"3\n"
    again = fold(Spec("demo", "1", sweep(3)), bench.log())
    assert run.state is not None and again.ended == run.state.ended == "succeeded"
    assert bench.troubles() == []


def test_values_go_from_maker_to_reader(bench: Bench) -> None:
    run = bench.drive(step("a", "commit(x=41)", saves=("x",)), step("b", "commit(y=read('x') + 1)", "x:a", saves=("y",)))

    assert run.state is not None and run.state.ended == "succeeded"
    assert json.loads(bench.store.get(layout.commit("demo", "1", "b", ())))["artifacts"]["y"]["json"] == 42


def test_a_name_that_was_not_made_skips_its_reader_and_one_that_could_not_be_saved_does_not(bench: Bench) -> None:
    bench.drive(step("a", "commit()", saves=("x",)), step("b", "commit()", "x:a"))

    assert "skipped b" in bench.happened()


def test_an_order_has_all_that_the_contract_names(bench: Bench) -> None:
    bench.drive(step("a", "print(json.dumps(order))\ncommit()"))

    order = json.loads(bench.store.get(layout.output("demo", "1", "a", (), 0)))
    assert {"store", "flow", "run", "step", "index", "part", "attempt", "inputs", "joins", "item", "failures"} <= order.keys()
    assert {"cwd", "sys_path", "scratch", "frames_fd"} <= order.keys()
    assert order["store"] == {"kind": "files", "root": str(bench.folder / "project")}


def test_options_reach_the_environment_of_the_worker_only(bench: Bench) -> None:
    show = "print(os.environ.get('A'), os.environ.get('B'), os.environ['OMP_NUM_THREADS'])\ncommit()"
    options = {"env": (("A", "1"), ("B", None), ("C", None)), "resources": Resources(cpu=2)}
    run = bench.drive(step("a", show, **options), env={"B": "from the notebook"})

    assert bench.store.get(layout.output("demo", "1", "a", (), 0)) == b"1 from the notebook 2\n"
    assert run.state is not None and run.state.tasks[Task("a")].notes == ("environment variable C is not set where the notebook runs",)
    assert b"from the notebook" not in b"".join(bench.store.get(key) for key in bench.store.list("flows/") if "output" not in key)


# ---- failures -----------------------------------------------------------------------------------------------------------


def test_a_failure_carries_the_workers_error_and_the_last_lines_printed(bench: Bench) -> None:
    body = "for i in range(50): print('line', i, flush=True)\nframe(f='failed', error={'type': 'ValueError', 'message': 'bad', 'line': 3})\nos._exit(1)"
    run = bench.drive(step("a", body))

    found = error(run, "a")
    assert (found["reason"], found["type"], found["line"]) == ("error", "ValueError", 3)
    assert found["output_tail"].split("\n") == [f"line {i}" for i in range(30, 50)]
    assert bench.store.get(layout.output("demo", "1", "a", (), 0)).startswith(b"line 0\n")


@pytest.mark.parametrize(
    ("body", "options", "reason", "words"),
    [
        ("os._exit(0)", {}, "exit", ["a: the body ended the process", "os._exit(0)", "raise an error"]),
        ("os._exit(7)", {}, "exit", ["os._exit(7)"]),
        ("os.kill(os.getpid(), 9)", {}, "killed", ["a was killed by SIGKILL", "--memory"]),
        ("time.sleep(60)", {"timeout_s": 0.3}, "timeout", ["its limit of 0.3 s", "--timeout"]),
        ("x = bytearray(400_000_000); time.sleep(60)", {"resources": Resources(memory_mb=200)}, "oom", ["limit is 200 MB", "--memory"]),
        ("frame(f='failed', error='no dict'); os._exit(1)", {}, "exit", ["os._exit(1)"]),
    ],
)
def test_a_death_without_a_word_is_explained(bench: Bench, body: str, options: dict[str, Any], reason: str, words: list[str]) -> None:
    found = error(bench.drive(step("a", body, **options)), "a")

    assert found["reason"] == reason
    assert all(word in found["message"] for word in words), found["message"]


def test_a_commit_counts_whatever_happened_after_it(bench: Bench) -> None:
    run = bench.drive(step("a", "commit()\nos.kill(os.getpid(), 9)"))

    assert run.state is not None and run.state.ended == "succeeded"


def test_a_failure_is_tried_again_and_each_attempts_output_is_kept(bench: Bench) -> None:
    body = "print('attempt', order['attempt'], flush=True)\nif order['attempt'] < 2: os._exit(1)\ncommit()"
    run = bench.drive(step("a", body, retry=Retry(times=3, minutes_between_retries=0)))

    assert run.state is not None and run.state.ended == "succeeded"
    assert [bench.store.get(layout.output("demo", "1", "a", (), k)) for k in range(3)] == [b"attempt %d\n" % k for k in range(3)]


def test_a_death_is_caught_once_its_attempts_are_used_up(bench: Bench) -> None:
    a = step("a", "os.kill(os.getpid(), 9)", catch="problem", saves=("x", "problem"), retry=Retry(1, 0))
    run = bench.drive(a, step("b", "print(read('problem'))\ncommit()", "problem:a"), step("c", "commit()", "x:a"))

    assert run.state is not None and run.state.ended == "succeeded"
    assert bench.happened().count("launched a") == 2 and "skipped c" in bench.happened()
    assert bench.store.get(layout.output("demo", "1", "b", (), 0)).startswith(b"killed: the process of a was killed by SIGKILL")


def test_one_point_of_a_sweep_may_fail_within_min_ok(bench: Bench) -> None:
    run = bench.drive(*sweep(4, "os._exit(1) if order['index'] == [2] else commit(y=1)", min_ok="75%"))

    assert run.state is not None and run.state.ended == "succeeded"
    assert run.state.counts("train")["failed"] == 1


def test_a_folder_that_is_gone_fails_the_task_and_says_so(bench: Bench) -> None:
    run = bench.run(step("a"))
    run.place = Place({}, str(bench.folder / "gone"))

    asyncio.run(run.drive())

    assert error(run, "a")["reason"] == "lost"
    assert "gone is gone" in error(run, "a")["message"]


# ---- what is printed and shown --------------------------------------------------------------------------------------------


def test_output_of_any_size_is_moved_and_not_read(bench: Bench) -> None:
    import resource

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.drive(step("a", "block = b'x' * 999_999 + b'\\n'\nfor _ in range(200): os.write(1, block)\nos._exit(1)"))

    assert bench.store.size(layout.output("demo", "1", "a", (), 0)) == 200_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 60_000
    bench.store.delete(layout.output("demo", "1", "a", (), 0))


def test_followers_get_the_last_part_printed_capped_and_with_its_size(bench: Bench) -> None:
    bench.drive(step("a", "os.write(1, 'é'.encode() * 100_000); commit()"))

    last = [m for m in bench.said if m["say"] == "output"][-1]
    assert last["size"] == 200_000
    assert set(last["text"]) == {"é"} and len(last["text"]) <= 32_000


def test_rich_output_is_kept_and_an_update_takes_the_place_of_what_it_updates(bench: Bench) -> None:
    show = "frame(f='display', at=0, data={'text/plain': %r}, metadata={}, id=%s, update=%s)"
    body = [
        show % ("0%", "'bar'", False),
        show % ("a", "None", False),
        show % ("99%", "'bar'", True),
        "frame(f='display', data=3)",
        "commit()",
    ]
    bench.drive(step("a", "\n".join(body)))

    kept = json.loads(bench.store.get(layout.display("demo", "1", "a", (), 0)))
    assert [f["data"]["text/plain"] for f in kept["frames"]] == ["99%", "a"]
    assert sum(m["say"] == "frame" and m["f"] == "display" for m in bench.said) == 4


def test_nothing_is_kept_of_a_task_that_printed_nothing(bench: Bench) -> None:
    bench.drive(step("a"))

    assert not [key for key in bench.store.list("flows/") if "/a/0/" in key]
    assert not list((bench.folder / "project/local").iterdir())


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ""),
        ("a\nb\n", "a\nb"),
        ("10%\r20%\r30%\ndone", "30%\ndone"),
        ("windows\r\nline\r\n", "windows\nline"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
    ],
)
def test_the_last_lines_are_those_of_a_terminal(text: str, lines: str) -> None:
    assert last_lines(text) == lines


# ---- stopping ---------------------------------------------------------------------------------------------------------


def ask(bench: Bench, name: str, data: bytes) -> None:
    bench.store.create(layout.request("demo", "1", name), data)


def test_a_request_to_stop_ends_the_workers_and_the_run(bench: Bench) -> None:
    run = bench.run(step("a", "print(os.getpid(), flush=True); time.sleep(60)"), step("b", "commit()", "x:a"))

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: any(live.tail()[1] for live in run.live.values()))
        ask(bench, "stop-1", b'{"ask": "stop", "step": null, "index": null}')
        run.poke()
        assert await asyncio.wait_for(driven, 20) == "stopped"

    asyncio.run(scene())
    assert "stopped a" in bench.happened()
    pid = int(bench.store.get(layout.output("demo", "1", "a", (), 0)))
    assert not Path(f"/proc/{pid}").exists()


def test_one_task_of_a_sweep_is_stopped_alone(bench: Bench) -> None:
    run = bench.run(*sweep(2, "time.sleep(60) if order['index'] == [1] else commit(y=1)"))

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: Task("train", (1,)) in run.live)
        ask(bench, "stop-1", b'{"ask": "stop", "step": "train", "index": [1]}')
        assert await asyncio.wait_for(driven, 20) == "stopped"

    asyncio.run(scene())
    assert run.state is not None and run.state.tasks[Task("train", (0,))].state == "succeeded"


@pytest.mark.parametrize(
    "junk", [b"", b"{", b"[]", b"3", b'{"ask": "dance"}', b'{"ask": "stop", "step": "nobody"}', b'{"ask": "stop", "step": "a", "index": 3}']
)
def test_junk_among_the_requests_is_passed_over(bench: Bench, junk: bytes) -> None:
    run = bench.run(step("a", "while not os.path.exists('go'): time.sleep(0.01)\ncommit()"))
    ask(bench, "x", junk)

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: bool(run._seen))
        (bench.folder / "go").touch()
        assert await asyncio.wait_for(driven, 20) == "succeeded"

    asyncio.run(scene())


def test_an_engine_that_is_asked_to_end_stops_its_run_and_the_log_says_so(bench: Bench) -> None:
    run = bench.run(step("a", "time.sleep(60)"), step("clean", "commit()", always=True))

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: bool(run.live))
        run.stop()
        assert await asyncio.wait_for(driven, 20) == "stopped"

    asyncio.run(scene())
    assert "launched clean" not in bench.happened()
    assert bench.log()[-1]["state"] == "stopped"


# ---- coroutines as workers: what does not need a process -------------------------------------------------------------------


class Fake:
    """Commits at once what `made` says, after `pause_s`; counts how many ran at once."""

    def __init__(self, store: FilesStore, pause_s: float = 0.0) -> None:
        self.store, self.pause_s = store, pause_s
        self.orders: list[dict[str, Any]] = []
        self.now = self.most = 0

    async def run(self, attempt: Attempt, on_frame: Callable[[Frame], None]) -> Exit:
        order = attempt.order
        self.orders.append(dict(order))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.pause_s)
        finally:
            self.now -= 1
        plans = {"train": {"count": 300, "items": "h"}} if order["step"] == "start" else {}
        commit = {"v": 1, "attempt": order["attempt"], "artifacts": {"xs": {"kind": "json", "json": 1}}, "plans": plans}
        key = layout.commit(order["flow"], order["run"], order["step"], tuple(order["index"]), order["part"])
        self.store.create(key, json.dumps(commit).encode())
        return Exit("ended", 0)


def faked(bench: Bench, pause_s: float = 0.0, capacity: Capacity = Capacity(cores=4)) -> Fake:  # noqa: B008
    fake = Fake(bench.store, pause_s)
    bench.machine = Machine(fake, capacity)
    return fake


def test_many_ends_in_one_turn_are_one_log_object(bench: Bench) -> None:
    faked(bench, capacity=Capacity(cores=100))

    run = bench.drive(*sweep(300))

    assert run.state is not None and run.state.counts("train")["succeeded"] == 300
    assert len(list(bench.store.list(layout.log_prefix("demo", "1")))) < 150
    assert len(bench.log()) == 2 + 2 * 302


def test_no_more_run_at_once_than_cores_allow_nor_than_max_parallel(bench: Bench) -> None:
    fake = faked(bench, 0.001)
    bench.drive(*sweep(300))
    assert fake.most == 4

    fake.most = 0
    bench.drive(*sweep(300), run="2", max_parallel=2, fresh=True)
    assert fake.most == 2


def test_runs_share_the_machine(bench: Bench) -> None:
    fake = faked(bench, 0.001)
    one, two = bench.run(*sweep(300), fresh=True), bench.run(*sweep(300), run="2", fresh=True)

    async def both() -> None:
        assert await asyncio.gather(one.drive(), two.drive()) == ["succeeded", "succeeded"]

    asyncio.run(both())
    assert fake.most == 4
    assert bench.machine.granted == {} and bench.machine.wakers == set()


def test_an_ask_beyond_the_machine_runs_with_a_note(bench: Bench) -> None:
    faked(bench)
    run = bench.drive(step("a", resources=Resources(cpu=99, gpu=1)))

    assert run.state is not None and run.state.ended == "succeeded"
    assert run.state.tasks[Task("a")].notes == ("cpu 99 asked, 4 here: runs with 4", "gpu 1 asked, none here: runs without")


def test_a_launcher_that_raises_loses_the_attempt_and_not_the_engine(bench: Bench) -> None:
    class Broken:
        async def run(self, attempt: Attempt, on_frame: Callable[[Frame], None]) -> Exit:
            raise MemoryError("no more")

    bench.machine = Machine(Broken(), Capacity(cores=1))
    run = bench.drive(step("a"))

    assert error(run, "a")["reason"] == "lost"
    assert "MemoryError" in error(run, "a")["message"]


# ---- results of other runs ----------------------------------------------------------------------------------------------


def launched(bench: Bench, run: str) -> list[str]:
    return [h.removeprefix("launched ") for h in bench.happened(run) if h.startswith("launched")]


def test_a_second_run_takes_all_that_the_first_made_and_an_edited_step_runs_alone(bench: Bench) -> None:
    steps = (step("a", "commit(x=1)", saves=("x",)), step("b", "commit(y=read('x'))", "x:a", saves=("y",)), step("c", "commit()", "y:b"))
    bench.drive(*steps)
    bench.drive(*steps, run="2")
    edited = (steps[0], step("b", "commit(y=read('x') + 0)", "x:a", saves=("y",)), steps[2])
    run = bench.drive(*edited, run="3")

    assert launched(bench, "2") == []
    assert launched(bench, "3") == ["b"]  # its result is the same, so c stands
    assert run.state is not None and run.state.ended == "succeeded"
    assert run.state.tasks[Task("a")].origin == "1"  # not 2, which took it over itself


def test_a_resume_takes_what_ended_well_and_runs_the_rest(bench: Bench) -> None:
    bench.drive(*sweep(4, "os._exit(1) if order['index'] == [2] and order['run'] == '1' else commit(y=1)", no_cache=True), fresh=True)

    same = sweep(4, "os._exit(1) if order['index'] == [2] and order['run'] == '1' else commit(y=1)", no_cache=True)
    run = bench.drive(*same, run="2", origin="1", fresh=True)

    assert run.state is not None and run.state.ended == "succeeded"
    assert launched(bench, "2") == ["train[2]", "best"]


def test_a_resume_takes_also_what_came_after_a_step_that_it_takes(bench: Bench) -> None:
    steps = (
        step("a"),
        step("b", after=("a",)),
        step("c", "os._exit(order['run'] == '1') if order['run'] == '1' else commit()", after=("b",)),
    )
    bench.drive(*steps)

    bench.drive(*steps, run="2", origin="1")

    assert launched(bench, "2") == ["c"]


def test_a_sweep_with_one_more_item_in_front_runs_that_item(bench: Bench) -> None:
    def items(letters: str) -> tuple[Step, ...]:
        _start, train, best = sweep(len(letters), "commit(y=order['ids'])")
        plan = {"count": len(letters), "items": "h", "ids": "".join(c * 22 for c in letters)}
        return step("start", f"plans['train'] = {plan}\ncommit(xs=1)", saves=("xs",), hosted=("train",)), train, best

    bench.drive(*items("ab"))
    bench.drive(*items("xab"), run="2")

    assert launched(bench, "2") == ["start", "train[0]", "best"]
    copied = json.loads(bench.store.get(layout.commit("demo", "2", "train", (2,))))
    assert copied["artifacts"]["y"]["json"] == ["b" * 22]
    assert {**copied["made_in"], "at": 0} == {"run": "1", "index": [1], "at": 0}


def test_fresh_runs_all_and_no_cache_that_step(bench: Bench) -> None:
    steps = (step("a", "commit(x=1)", saves=("x",)), step("b", "commit()", "x:a", no_cache=True))
    bench.drive(*steps)

    bench.drive(*steps, run="2")
    bench.drive(*steps, run="3", fresh=True)

    assert launched(bench, "2") == ["b"]
    assert launched(bench, "3") == ["a", "b"]


def test_a_result_that_is_too_old_is_made_again(bench: Bench) -> None:
    bench.drive(step("a", cache_for_s=3600.0))
    young = bench.run(step("a", cache_for_s=3600.0), run="2")
    old = bench.run(step("a", cache_for_s=3600.0), run="3")
    young._clock, old._clock = lambda: time.time() + 3500, lambda: time.time() + 7300

    for run in (old, young):
        asyncio.run(asyncio.wait_for(run.drive(), 60))

    assert (launched(bench, "2"), launched(bench, "3")) == ([], ["a"])


def test_a_miss_says_what_changed(bench: Bench) -> None:
    def steps(x: int, **parts: str) -> tuple[Step, ...]:
        return (
            step("a", f"commit(x={x})", saves=("x",), key=f"a{x}", parts={"code": str(x)}),
            step("b", "commit()", "x:a", key=f"b{parts}", parts={"code": "1", **parts}),
        )

    def whys(run: str) -> list[str]:
        return [e.get("why", "") for e in bench.log(run) if e["e"] == "launched"]

    bench.drive(*steps(1, **{"`alpha`": "1"}))
    bench.drive(*steps(2, **{"`alpha`": "1"}), run="2")
    bench.drive(*steps(2, **{"`alpha`": "2"}), run="3")
    bench.drive(*steps(2), run="4")
    bench.drive(*steps(2, **{"`beta`": "2"}), run="5")
    bench.drive(*steps(2, **{"the working folder": "/x", "`beta`": "2"}), run="6")

    assert whys("1") == ["", ""]
    assert whys("2") == ["code changed since run 1", "`x` changed since run 1"]
    assert whys("3") == ["`alpha` changed since run 2"]
    assert whys("4") == ["it no longer uses `alpha`, as run 3 did"]
    assert whys("5") == ["it uses `beta`, which run 4 did not"]
    assert whys("6") == ["run 5 was started in another way, from a file or from a notebook"]


def test_a_task_that_an_earlier_run_did_not_finish_says_so(bench: Bench) -> None:
    bench.drive(step("a", "raise SystemExit(1)"))

    bench.drive(step("a"), run="2")

    assert [e["why"] for e in bench.log("2") if e["e"] == "launched"] == ["run 1 has no result of it"]


def test_a_caught_result_and_a_damaged_one_are_made_again(bench: Bench) -> None:
    steps = (step("a", "os.kill(os.getpid(), 9)", catch="e", saves=("e",)), step("b"))
    bench.drive(*steps)
    damaged = bench.folder / "project" / layout.commit("demo", "1", "b", ())
    damaged.chmod(0o600)
    damaged.write_bytes(b"{")

    bench.drive(*steps, run="2", origin="1")

    assert [h for h in bench.happened("2") if "reused" in h] == []
    assert sorted(launched(bench, "2")) == ["a", "b"]


def test_a_result_that_lost_a_change_which_is_read_now_is_made_again(bench: Bench) -> None:
    bench.drive(step("a"))
    place = bench.folder / "project" / layout.commit("demo", "1", "a", ())
    place.chmod(0o600)
    place.write_text(json.dumps({"v": 1, "attempt": 0, "artifacts": {}, "changed": ["data"]}))

    bench.drive(step("a", watch=(("data", "warn"),)), run="2")
    bench.drive(step("a", watch=(("data", "error"),)), run="3")

    assert (launched(bench, "2"), launched(bench, "3")) == ([], ["a"])


def test_a_result_whose_blob_is_gone_is_made_again(bench: Bench) -> None:
    source = "made = {'kind': 'value', 'blob': 'ab' * 32}\ncommit()"
    bench.drive(step("a", source))
    place = bench.folder / "project" / layout.commit("demo", "1", "a", ())
    place.chmod(0o600)
    place.write_text(json.dumps({"v": 1, "attempt": 0, "artifacts": {"x": {"kind": "value", "blob": "ab" * 32}}}))

    bench.drive(step("a", source), run="2")

    assert launched(bench, "2") == ["a"]


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"v": 1, "tasks": {"k": 3}}'])
def test_a_damaged_index_of_an_earlier_run_harms_nobody(bench: Bench, damage: bytes) -> None:
    bench.drive(step("a"))
    bench.store.put(layout.keys("demo", "1"), damage)

    run = bench.drive(step("a"), run="2")

    assert run.state is not None and run.state.ended == "succeeded"


def test_a_run_without_an_index_is_read_from_its_log(bench: Bench) -> None:
    bench.drive(step("a"))
    bench.store.delete(layout.keys("demo", "1"))
    bench.machine.caches.clear()

    bench.drive(step("a"), run="2")

    assert launched(bench, "2") == []


def test_a_second_run_waits_for_an_equal_task_that_runs_and_takes_its_result(bench: Bench) -> None:
    go = bench.folder / "go"
    slow = step("slow", f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\ncommit()")
    one, two = bench.run(slow, run="1"), bench.run(slow, step("own"), run="2")

    async def scene() -> None:
        first = asyncio.create_task(one.drive())
        await until(lambda: bool(one.live))
        second = asyncio.create_task(two.drive())
        await until(lambda: bool(two.state and two.state.tasks[Task("own")].done))
        assert not two.state.tasks[Task("slow")].done
        go.write_text("")
        await asyncio.wait_for(asyncio.gather(first, second), 60)

    asyncio.run(scene())
    assert launched(bench, "2") == ["own"]
    assert "reused slow" in bench.happened("2")


def test_an_equal_task_that_fails_in_the_other_run_is_launched_here(bench: Bench) -> None:
    go = bench.folder / "go"
    slow = step("slow", f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\nos._exit(1) if order['run'] == '1' else commit()")
    one, two = bench.run(slow, run="1"), bench.run(slow, run="2")

    async def scene() -> None:
        first = asyncio.create_task(one.drive())
        await until(lambda: bool(one.live))
        second = asyncio.create_task(two.drive())
        await until(lambda: bool(two.state and two.state._sharing))
        go.write_text("")
        await asyncio.wait_for(asyncio.gather(first, second), 60)

    asyncio.run(scene())
    assert one.state is not None and one.state.ended == "failed"
    assert two.state is not None and two.state.ended == "succeeded"
    assert launched(bench, "2") == ["slow"]


# ---- going on with a dead engine's run ------------------------------------------------------------------------------------


def test_a_run_of_an_engine_that_is_gone_goes_on_where_it_stood(bench: Bench) -> None:
    """The first engine wrote its log up to here: `a` had succeeded, `b` had committed, `c` was running, `d` had not begun."""
    steps = (step("a"), step("b"), step("c"), step("d", after=("c",)))
    run = bench.run(*steps)
    told = [events.run_started(1), *(events.launched(Task(name), 2) for name in "abc"), events.succeeded(Task("a"), 3)]
    bench.store.create(layout.log("demo", "1", 0), events.batch(events.pack(told)))
    for name in "ab":
        bench.store.create(layout.commit("demo", "1", name, ()), b'{"v": 1, "attempt": 0, "artifacts": {}}')
    run._adopt = True

    asyncio.run(asyncio.wait_for(run.drive(), 60))

    assert bench.happened()[5:] == ["succeeded b", "lost c", "launched c", "succeeded c", "launched d", "succeeded d", "run_ended"]
    assert json.loads(bench.store.get(layout.commit("demo", "1", "c", ())))["attempt"] == 1


def test_an_ended_run_is_not_gone_on_with(bench: Bench) -> None:
    bench.drive(step("a"))
    run = Run(bench.store, "demo", "1", bench.machine, adopt=True)

    assert asyncio.run(asyncio.wait_for(run.drive(), 60)) == "succeeded"
    assert bench.happened().count("launched a") == 1


def test_a_request_that_the_last_engine_obeyed_is_not_obeyed_twice(bench: Bench) -> None:
    run = bench.run(step("a"), step("bye", always=True))
    key = layout.request("demo", "1", "stop-1")
    bench.store.create(key, b'{"ask": "stop"}')
    told = [events.run_started(1), events.stop_requested(2, request=key)]
    bench.store.create(layout.log("demo", "1", 0), events.batch(events.pack(told)))
    run._adopt = True

    asyncio.run(asyncio.wait_for(run.drive(), 60))

    assert run.state is not None and run.state.ended == "stopped"
    assert launched(bench, "1") == ["bye"]


def test_an_attempt_that_flowbook_lost_is_launched_again_a_few_times(bench: Bench) -> None:
    class Losing:
        def __init__(self, times: int) -> None:
            self.left = times

        async def run(self, attempt: Attempt, on_frame: Callable[[Frame], None]) -> Exit:
            self.left -= 1
            return Exit("lost", message="the fork server died", again=True) if self.left >= 0 else await bench.worker.run(attempt, on_frame)

    bench.machine.launcher = Losing(2)
    assert bench.drive(step("a")).state.ended == "succeeded"
    assert bench.happened() == ["run_started", "launched a", "lost a", "launched a", "lost a", "launched a", "succeeded a", "run_ended"]

    bench.machine.launcher = Losing(100)
    run = bench.drive(step("b"), run="2")
    assert run.state.ended == "failed" and error(run, "b") | {"output_tail": ""} == {
        "reason": "lost",
        "message": "the fork server died",
        "output_tail": "",
    }


# ---- trouble ----------------------------------------------------------------------------------------------------------


class Full(FilesStore):
    """A store whose log cannot be written while `full`."""

    full = False

    def create(self, key: str, data: Any) -> bool:
        if self.full and "run.log" in key:
            raise StoreFull(f"cannot write {key}: no space left")
        return super().create(key, data)


def test_a_full_store_is_told_and_the_run_goes_on_once_there_is_space(bench: Bench) -> None:
    store = bench.store = Full(bench.folder / "project")
    run = bench.run(step("a", "while not os.path.exists('go'): time.sleep(0.01)\ncommit()"), step("b"))

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: len(run.live) == 1 and run.state is not None and run.state.tasks[Task("b")].state == "succeeded")
        store.full = True
        (bench.folder / "go").touch()
        await until(lambda: bool(bench.troubles()))
        store.full = False
        assert await asyncio.wait_for(driven, 30) == "succeeded"

    asyncio.run(scene())
    assert "no space left" in bench.troubles()[0] and "Nothing is lost" in bench.troubles()[0]
    assert bench.troubles()[-1] == ""
    assert bench.log()[-1]["e"] == "run_ended"


def test_a_store_that_stays_full_lets_what_runs_finish_and_is_given_up(bench: Bench) -> None:
    store = bench.store = Full(bench.folder / "project")
    run = bench.run(step("a"), step("slow", "while not os.path.exists('go'): time.sleep(0.01)\ncommit()"), patience_s=1.0)

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: len(run.live) == 2)
        store.full = True
        await until(lambda: run._given_up)
        (bench.folder / "go").touch()
        assert await asyncio.wait_for(driven, 30) is None

    asyncio.run(scene())
    assert bench.store.exists(layout.commit("demo", "1", "slow", ()))
    assert "given up" in bench.troubles()[-1] and "%flow resume" in bench.troubles()[-1]
    assert json.loads(run.packed[-1])[-1]["state"] == "failed"  # those who follow do not wait for ever


def test_an_engine_whose_log_object_is_taken_steps_back(bench: Bench) -> None:
    run = bench.run(step("a", "print(os.getpid(), flush=True); time.sleep(60)"))

    async def scene() -> None:
        driven = asyncio.create_task(run.drive())
        await until(lambda: bool(run.live))
        bench.store.create(layout.log("demo", "1", run._number), b'{"events": []}')
        run.stop()
        assert await asyncio.wait_for(driven, 20) is None

    asyncio.run(scene())
    assert "another engine owns run 1" in bench.troubles()[-1]
    assert "run_ended" not in bench.happened()


def test_a_run_that_another_engine_has_started_is_left_alone(bench: Bench) -> None:
    bench.drive(step("a"))
    before = bench.happened()

    again = Run(bench.store, "demo", "1", bench.machine, say=bench.said.append)

    assert asyncio.run(again.drive()) is None
    assert bench.happened() == before


@pytest.mark.parametrize("data", [None, b"{", b"[]", b"{}", b'{"flow": "demo", "run": "1", "steps": [{"name": 3}]}', b'{"version": 99}'])
def test_a_run_without_a_readable_spec_is_trouble(bench: Bench, data: bytes | None) -> None:
    if data is not None:
        bench.store.create(layout.spec("demo", "1"), data)
    run = Run(bench.store, "demo", "1", bench.machine, say=bench.said.append)

    assert asyncio.run(run.drive()) is None
    assert bench.troubles()[-1]


def test_a_commit_that_is_no_commit_ends_the_run_with_trouble_and_not_in_silence(bench: Bench) -> None:
    body = "commit()\npath = f\"{order['store']['root']}/flows/demo/1/a/0.COMMIT\"\nopen(path, 'w').write('{\"artifacts\": 3}')"
    bench.drive(step("a", body), patience_s=1.0)

    assert bench.troubles()
