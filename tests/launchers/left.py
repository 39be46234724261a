"""A flow file whose run is left alone while its pods are at work: for tests of what `resume` and `gc` do then, on a fake cluster and a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.launchers.stage import LIMIT_S

FLOW = """
import os, time
from flowbook import FlowSpec, Parameter, kubernetes, step


class LeftFlow(FlowSpec):
    alpha = Parameter("alpha", default=1)

    @step
    def start(self):
        self.items = [1, 2, 3]
        self.next(self.train, foreach="items")

    MARK
    @step
    def train(self):
        with open(f"DATA/begun-{self.input}", "a") as begun:
            begun.write("x")
        while not os.path.exists("DATA/go"):
            time.sleep(0.02)
        self.y = self.input * 10 * self.alpha
        self.next(self.join)

    @step
    def join(self, inputs):
        print("the sum is", sum(each.y for each in inputs))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    LeftFlow()
"""


def eventually(look: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not look():
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.02)


class Left:
    """`folder` is also `data`, as the pods see it: there they wait for a file, and count how often each has begun. `mark`: a decorator."""

    def __init__(self, folder: Path, environ: Mapping[str, str], data: str = "", mark: str = "") -> None:
        self.folder, self.env = folder, {**os.environ, **environ}
        self.file = folder / "left.py"
        self.file.write_text(FLOW.replace("DATA", data or str(folder)).replace("    MARK\n", f"    {mark}\n" if mark else ""))

    def start(self) -> subprocess.Popen[str]:
        """A run whose three pods are at work."""
        command = [sys.executable, "left.py", "--with", "kubernetes", "run"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=-1, stderr=subprocess.STDOUT, text=True)
        try:
            eventually(lambda: len(self.begun()) == 3 or process.poll() is not None, "the pods")
            assert process.poll() is None, process.communicate()
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return process

    def kill(self) -> None:
        """The process of such a run is killed."""
        process = self.start()
        process.kill()
        process.communicate()

    def begun(self) -> dict[str, int]:
        return {file.name: len(file.read_text()) for file in sorted(self.folder.glob("begun-*")) if file.read_text()}

    def go(self) -> None:
        """The pods may end."""
        (self.folder / "go").touch()

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "left.py", *words], cwd=self.folder, env=self.env, capture_output=True, text=True)

    def runs(self) -> dict[str, str]:
        found = [json.loads(line) for line in self("runs", "--json").stdout.splitlines()]
        return {each["run"]: each["state"] for each in found}
