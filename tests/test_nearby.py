"""Tasks that are forked from the process of the command line: when, and that nobody can tell the difference."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowbook.cli.nearby import Nearby, only_defines
from tests.test_cli import ONE, Shell, until

IMPORTS = "import os, json\nfrom flowbook import FlowSpec, Parameter, step, retry\nimport flowbook as fb\n"
ASKS = "import os; self.parent = open(f'/proc/{os.getppid()}/cmdline').read().split(chr(0))"


@pytest.mark.parametrize(
    "source",
    [
        '"""A flow."""\nfrom flowbook import *\n',
        "X = 3\nY: int = 4\na, b = 1, 2\nZ = [X, {'a': Y}]\n",
        "def f(x=X, *, y=3):\n    os.environ['A'] = '1'\n",
        "class A(FlowSpec):\n    'doc'\n    p = Parameter('p', default=0.1)\n    @retry(times=3)\n    @step\n    def start(self):\n        open('x')\n",
        "@fb.retry(times=2)\ndef f(): pass\n",
        "g = lambda: os.chdir('/')\n",
        "if __name__ == '__main__':\n    os.chdir('/')\n",
        "class Base(FlowSpec): pass\nclass Flow(Base): pass\n",
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass A:\n    x: int = int('3')\n",
        "import enum\nclass A(enum.Enum):\n    x = 1\n",
    ],
)
def test_a_file_that_only_imports_and_defines_may_be_executed_twice(source: str) -> None:
    assert only_defines(IMPORTS + source)


@pytest.mark.parametrize(
    "source",
    [
        "os.environ['A'] = '1'\n",
        "os.x = 3\n",
        "os.chdir('/')\n",
        "print('hello')\n",
        "x = open('y')\n",
        "x = json.loads('1')\n",
        "x = [os.getpid() for _ in 'ab']\n",
        "for i in range(3): pass\n",
        "try:\n    import torch\nexcept ImportError:\n    torch = None\n",
        "with open('x') as f: pass\n",
        "x += 1\n",
        "del x\n",
        "assert x\n",
        "if x:\n    y = 1\n",
        "if __name__ == '__main__' or os.chdir('/'):\n    pass\n",
        "class A:\n    os.environ['A'] = '1'\n",
        "class A(declarative.Model):\n    pass\n",
        "class A: pass\nx = A()\n",
        "class A(make_base()):\n    pass\n",
        "class A(metaclass=make()):\n    pass\n",
        "@register\ndef f(): pass\n",
        "@register()\nclass A: pass\n",
        "@registry.add\nclass A: pass\n",
        "def f(x=os.getpid()): pass\n",
        "def f(*, x=os.getpid()): pass\n",
        "class A:\n    @os.register\n    def f(self): pass\n",
        "f'{os.getpid()}'\n",
        "def f(:\n",
    ],
)
def test_a_file_that_does_something_is_executed_once_a_process(source: str) -> None:
    assert not only_defines(IMPORTS + source)


def test_nothing_at_all_is_no_flow() -> None:
    assert not only_defines("")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def parent(shell: Shell, before: str = "", **env: str) -> str:
    """The command line of the process that forked a task."""
    shell.write("one.py", before + ONE.format(name="OneFlow", body=ASKS) + "\nif __name__ == '__main__':\n    OneFlow()\n")
    found = shell("one.py", "run", **env)
    assert found.returncode == 0, found.stderr
    return shell("one.py", "dump", "latest", "--include", "parent").stdout


def test_a_task_of_a_plain_file_is_forked_from_the_process_that_runs_the_flow(shell: Shell) -> None:
    assert "'one.py', 'run'" in parent(shell)


@pytest.mark.parametrize(
    "before",
    [
        "import os\nos.environ['WORD'] = 'x'\n",
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
        "import beside\n",
    ],
)
def test_a_task_of_any_other_file_is_forked_from_a_process_of_its_own(shell: Shell, before: str) -> None:
    shell.write("beside.py", "X = 1\n")

    assert "flowbook.worker" in parent(shell, before)


def test_such_a_task_has_the_streams_signals_and_environment_of_any_other(shell: Shell) -> None:
    body = (
        "import os, signal, sys; self.seen = [sys.stdin.read(), os.environ['OMP_NUM_THREADS'], os.getsid(0) == os.getpid(), "
        "signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None) or callable(signal.getsignal(signal.SIGTERM)), __name__, __file__[-6:]]"
    )
    shell.write("one.py", ONE.format(name="OneFlow", body=body) + "\nif __name__ == '__main__':\n    OneFlow()\n")
    plain = shell("one.py", "run")
    assert plain.returncode == 0, plain.stderr
    shell.write("two.py", "import os\nos.environ['A'] = '1'\n" + (shell.folder / "one.py").read_text())
    other = shell("two.py", "run")
    assert other.returncode == 0, other.stderr

    first, second = (shell("one.py", "dump", run, "--include", "seen").stdout.splitlines()[-1] for run in ("1", "2"))
    assert first.replace("one.py", "two.py") == second.replace("one.py", "two.py")
    assert "['', '1', True, True, '__main__', " in first


def test_tasks_end_with_the_process_that_runs_the_flow(shell: Shell) -> None:
    body = "import os, time; print('ready', os.getpid(), flush=True); time.sleep(600)"
    shell.write("one.py", ONE.format(name="OneFlow", body=body) + "\nif __name__ == '__main__':\n    OneFlow()\n")
    process = shell.start("one.py", "run")
    task = int(until(process, "ready")[-1].split()[-1])

    process.kill()
    process.communicate()

    deadline = time.monotonic() + 30
    while Path(f"/proc/{task}").exists() and "State:\tZ" not in _status(task):
        assert time.monotonic() < deadline, "the task goes on"


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


def test_a_forked_process_is_waited_for_like_any_other() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    process = Nearby(pid)

    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.0)
    process.kill()
    assert (process.wait(), process.poll()) == (-signal.SIGKILL, -signal.SIGKILL)
    process.kill()  # nothing is killed twice


def test_the_overview_of_runs_is_not_disturbed(shell: Shell) -> None:
    """What was printed before the fork is printed once."""
    shell.write("one.py", ONE.format(name="OneFlow", body="pass") + "\nif __name__ == '__main__':\n    OneFlow()\n")
    found = subprocess.run(
        [sys.executable, "one.py", "run"], cwd=shell.folder, env=shell.env | {"PYTHONUNBUFFERED": ""}, capture_output=True, text=True
    )

    assert found.stdout.count("run 1 of OneFlow\n") == 1
    assert json.loads(shell("one.py", "runs", "--json").stdout)["state"] == "succeeded"
