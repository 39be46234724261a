"""Attempts as real processes. The worker here is a script that obeys its order's "do": the launcher knows no more of it either."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flowbook.engine.launch.fork import ForkServers
from flowbook.engine.launch.local import Attempt, Exit, Frame, LocalLauncher, environment, find_devices, machine_capacity
from flowbook.spec.flow import Resources

T = TypeVar("T")
SPAWNED = "import json, sys\norder = json.loads(sys.stdin.buffer.read())\n"
FORKED = """
import os, sys
from flowbook.worker import forkserver, output
def run(order):
    code = 0
    try:
        exec(PRELUDE, {"order": order, "__name__": "__main__"})
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
output.prepare_streams()
forkserver.serve(int(sys.argv[1]), run)
"""
PRELUDE = """
import json, os, signal, subprocess, sys, time
def frame(**fields):
    os.write(order["frames_fd"], json.dumps(fields).encode() + b"\\n")
def raw(data):
    while data:
        data = data[os.write(order["frames_fd"], data):]
def alive():
    frame(f="pid", pid=os.getpid(), pgid=os.getpgid(0))
exec(order["do"])
"""


class Bench:
    """Runs snippets as workers and keeps what came of them."""

    def __init__(self, folder: Path, how: str = "spawn") -> None:
        self.folder = folder
        self.loop: asyncio.AbstractEventLoop | None = None
        self.output = folder / "output"
        self.frames: list[Frame] = []
        script = folder / "worker.py"
        script.write_text(SPAWNED + PRELUDE)
        server = folder / "server.py"
        server.write_text(FORKED.replace("PRELUDE", repr(PRELUDE)))
        forks = ForkServers((sys.executable, "-P", str(server)), log=folder / "server.log") if how == "fork" else None
        self.launcher = LocalLauncher(worker=(sys.executable, "-P", str(script)), grace_s=1.0, forks=forks)

    def close(self) -> None:
        if self.loop is not None:
            self.loop.run_until_complete(self._close())
            self.loop.close()

    async def _close(self) -> None:
        self.launcher.close()

    async def attempt(self, do: str, **fields: Any) -> Exit:
        env = {"PATH": os.environ["PATH"], **fields.pop("env", {})}
        order = {"do": do, "cwd": str(fields.pop("cwd", self.folder)), **fields.pop("order", {})}
        return await self.launcher.run(Attempt(order, self.output, env, **fields), self.frames.append)

    def run(self, do: str, **fields: Any) -> Exit:
        return self.complete(self.attempt(do, **fields))

    def complete(self, scene: Coroutine[Any, Any, T]) -> T:
        """Run it in the one loop of this bench, where its fork server lives."""
        self.loop = self.loop or asyncio.new_event_loop()
        return self.loop.run_until_complete(scene)

    def cancel_when(self, seen: Callable[[], bool], do: str) -> float:
        """Start it, cancel it once `seen`, and give the seconds that took."""

        async def scene() -> float:
            task = asyncio.create_task(self.attempt(do))
            await until(seen)
            begun = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - begun

        return self.complete(scene())

    @property
    def text(self) -> str:
        return self.output.read_text()

    def pid(self, n: int = 0) -> int:
        return int([f for f in self.frames if f["f"] == "pid"][n]["pid"])


async def until(seen: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Not there, or a zombie of somebody else."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture(params=["spawn", "fork"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(tmp_path, request.param)
    yield bench
    bench.close()


def test_an_attempt_reads_its_order_prints_to_its_file_and_sends_frames(bench: Bench) -> None:
    done = bench.run("print(order['step']); print('err', file=sys.stderr, flush=True); frame(f='committed')", order={"step": "train"})

    assert (done.reason, done.code) == ("ended", 0)
    assert sorted(bench.text.split()) == ["err", "train"]
    assert bench.frames == [{"f": "committed"}]


def test_an_order_of_any_size_goes_in(bench: Bench) -> None:
    bench.run("print(len(order['big']))", order={"big": "x" * 3_000_000})

    assert bench.text == "3000000\n"


def test_output_is_appended(bench: Bench) -> None:
    bench.run("print('one')")
    bench.run("print('two')")

    assert bench.text == "one\ntwo\n"


@pytest.mark.parametrize(("do", "code"), [("os._exit(0)", 0), ("sys.exit(3)", 3), ("1 / 0", 1)])
def test_an_exit_is_told_with_its_code(bench: Bench, do: str, code: int) -> None:
    done = bench.run(do)

    assert (done.reason, done.code) == ("ended", code)


def test_a_killed_process_is_told_with_the_signal(bench: Bench) -> None:
    assert bench.run("os.kill(os.getpid(), signal.SIGKILL)") == Exit("killed", -9, "SIGKILL")
    assert bench.run("os.kill(os.getpid(), signal.SIGSEGV)").signal == "SIGSEGV"


def test_the_worker_leads_a_session_of_its_own(bench: Bench) -> None:
    bench.run("print(os.getsid(0) == os.getpgid(0) == os.getpid())")

    assert bench.text == "True\n"


def test_a_timeout_ends_the_whole_group(bench: Bench) -> None:
    done = bench.run("alive()\nif os.fork() == 0: alive()\ntime.sleep(60)", timeout_s=0.5)

    assert done.reason == "timeout"
    bench.complete(until(lambda: is_gone(bench.pid(0)) and is_gone(bench.pid(1))))


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(bench: Bench) -> None:
    bench.launcher._grace_s = 0.2
    took = bench.cancel_when(lambda: bool(bench.frames), "signal.signal(signal.SIGTERM, signal.SIG_IGN); alive(); time.sleep(600)")

    assert is_gone(bench.pid())
    assert took < 120


def test_cancelling_lets_a_process_that_hears_sigterm_clean_up(bench: Bench) -> None:
    do = "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), os._exit(0))); alive(); time.sleep(60)"

    bench.cancel_when(lambda: bool(bench.frames), do)

    assert bench.text == "bye\n"


def test_cancelling_ends_a_process_that_was_halted(bench: Bench) -> None:
    bench.cancel_when(lambda: bool(bench.frames), "alive(); os.kill(os.getpid(), signal.SIGSTOP)")

    assert is_gone(bench.pid())


def test_children_that_a_worker_leaves_behind_are_killed(bench: Bench) -> None:
    do = "r, w = os.pipe()\nif os.fork() == 0:\n    alive()\n    os.write(w, b'x')\n    time.sleep(60)\nos.read(r, 1)\nos._exit(0)"

    assert bench.run(do).code == 0
    bench.complete(until(lambda: is_gone(bench.pid())))


def test_a_child_that_escaped_and_holds_the_pipes_does_not_hold_up_the_end(bench: Bench) -> None:
    do = "if os.fork() == 0:\n    os.setsid()\n    alive()\n    time.sleep(250)\n    os._exit(0)\ntime.sleep(0.5)"
    begun = time.monotonic()

    bench.run(do)

    assert time.monotonic() - begun < 120
    os.kill(bench.pid(), 9)


def test_memory_over_the_limit_is_killed_and_the_peak_told(bench: Bench) -> None:
    done = bench.run("x = bytearray(300_000_000); time.sleep(60)", resources=Resources(memory_mb=150))

    assert done.reason == "oom"
    assert done.peak_mb is not None and 150 < done.peak_mb < 400


def test_memory_of_children_counts(bench: Bench) -> None:
    do = "if os.fork() == 0:\n    x = bytearray(300_000_000)\ntime.sleep(60)"

    assert bench.run(do, resources=Resources(memory_mb=150)).reason == "oom"


def test_memory_within_the_limit_goes_through(bench: Bench) -> None:
    done = bench.run("x = bytearray(50_000_000); time.sleep(0.5)", resources=Resources(memory_mb=500))

    assert (done.reason, done.code) == ("ended", 0)
    assert done.peak_mb is not None and done.peak_mb < 500


def test_huge_output_goes_to_the_file_and_not_through_the_engine(bench: Bench) -> None:
    import resource

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.run("block = b'x' * 999_999 + b'\\n'\nfor _ in range(200): os.write(1, block)")

    assert bench.output.stat().st_size == 200_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000
    bench.output.unlink()


@pytest.mark.parametrize(
    "junk",
    [
        "b'not json\\n'",
        "b'[1, 2]\\n'",
        "b'{\"no f\": 1}\\n'",
        "b'{\"f\": 3}\\n'",
        "b'\\xff\\xfe\\x00\\n'",
        "b'\\n\\n\\n'",
        "b'[' * 100_000 + b'\\n'",
        "b'x' * 9_000_000 + b'\\n'",
        "b'{\"f\": \"' + b'x' * 9_000_000 + b'\"}\\n'",
        "b'null\\n'",
    ],
)
def test_junk_between_frames_is_left_out(bench: Bench, junk: str) -> None:
    done = bench.run(f"frame(f='a'); raw({junk}); frame(f='b')")

    assert done.code == 0
    assert [f["f"] for f in bench.frames] == ["a", "b"]


def test_a_large_frame_and_one_without_line_end_arrive(bench: Bench) -> None:
    bench.run("raw(json.dumps({'f': 'display', 'data': 'x' * 5_000_000}).encode() + b'\\n'); raw(b'{\"f\": \"last\"}')")

    assert [f["f"] for f in bench.frames] == ["display", "last"]
    assert len(bench.frames[0]["data"]) == 5_000_000


def test_the_scratch_folder_is_the_attempts_own_and_goes_with_it(bench: Bench) -> None:
    bench.run(
        "os.mkdir(order['scratch']); open(order['scratch'] + '/big', 'w').write('x'); print(order['scratch'], os.path.isdir(order['scratch']))"
    )

    path, was_there = bench.text.split()
    assert was_there == "True"
    assert not Path(path).exists()


def test_a_folder_that_is_gone_is_named(bench: Bench) -> None:
    done = bench.run("pass", cwd=bench.folder / "gone")

    assert done.reason == "lost"
    assert f"{bench.folder}/gone is gone" in done.message


def test_a_worker_that_cannot_be_started_is_lost(bench: Bench) -> None:
    bench.launcher = LocalLauncher(worker=("/nowhere/python",))

    assert bench.run("pass").reason == "lost"


def test_no_file_descriptor_is_left_over(bench: Bench) -> None:
    bench.run("pass")
    before = len(os.listdir("/proc/self/fd"))

    for do in ("pass", "os._exit(1)", "frame(f='x')"):
        bench.run(do)
    bench.run("pass", cwd=bench.folder / "gone")

    assert len(os.listdir("/proc/self/fd")) == before


def test_numeric_libraries_get_as_many_threads_as_cores_unless_the_user_said_so(tmp_path: Path) -> None:
    def env(**fields: Any) -> dict[str, str]:
        return environment(Attempt({}, tmp_path, **fields))

    assert env(resources=Resources(cpu=2.5))["OMP_NUM_THREADS"] == "3"
    assert env(resources=Resources(cpu=0))["MKL_NUM_THREADS"] == "1"
    assert env(env={"OMP_NUM_THREADS": "7"})["OMP_NUM_THREADS"] == "7"
    assert env(env={"A": "1"}, step_env={"OMP_NUM_THREADS": "9", "A": "2"})["OMP_NUM_THREADS"] == "9"
    assert env(env={"A": "1"}, step_env={"A": "2"})["A"] == "2"


def test_gpus_are_handed_out_once_and_given_back(bench: Bench) -> None:
    bench.launcher.devices = ["0", "GPU-b"]
    do = "print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); time.sleep(0.3)"

    async def scene() -> None:
        await asyncio.gather(bench.attempt(do, resources=Resources(gpu=1)), bench.attempt(do, resources=Resources(gpu=1)))

    bench.complete(scene())
    bench.run(do, resources=Resources(gpu=2))
    bench.run(do)

    assert sorted(bench.text.split()[:2]) == ["0", "GPU-b"]
    assert sorted(bench.text.split()[2].split(",")) == ["0", "GPU-b"]
    assert bench.text.split()[3] == "None"


def test_gpus_are_found_where_the_user_or_the_driver_says(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'\necho 'GPU 1: B (UUID: y)'\n")
    smi.chmod(0o755)

    assert find_devices({"FLOWBOOK_GPUS": "2", "PATH": ""}) == ["0", "1"]
    assert find_devices({"CUDA_VISIBLE_DEVICES": "3, GPU-x"}) == ["3", "GPU-x"]
    assert find_devices({"CUDA_VISIBLE_DEVICES": "3,4,5", "FLOWBOOK_GPUS": "1"}) == ["3"]
    assert find_devices({"PATH": str(tmp_path)}) == ["0", "1"]


@pytest.mark.parametrize(
    "env", [{}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"FLOWBOOK_GPUS": "0"}, {"FLOWBOOK_GPUS": "many"}]
)
def test_no_gpu_is_found_where_there_is_none(env: dict[str, str], tmp_path: Path) -> None:
    assert find_devices({"PATH": str(tmp_path), **env}) == []


def test_the_machine_has_cores_and_memory() -> None:
    found = machine_capacity()

    assert found.cores >= 1
    assert found.memory_mb is not None and found.memory_mb > 100


def test_an_order_is_what_the_worker_reads(bench: Bench) -> None:
    bench.run("print(json.dumps(order))", order={"joins": {"ü": None}})

    order = json.loads(bench.text)
    assert order["joins"] == {"ü": None}
    assert {"scratch", "frames_fd"} <= order.keys()
