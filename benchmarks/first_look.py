"""A first look at speed: what an import, a first run and a wide fan-out cost, in a real kernel on this machine.

    make bench        or: python benchmarks/first_look.py [--items 100] [--rounds 7]

CPU seconds of an import are those of a whole interpreter (user + system), its median over the rounds, so that another
busy process disturbs them little. The rest is wall time, as a user waits for it.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOTHING = "pass"


def cpu_seconds(code: str, rounds: int) -> float:
    """CPU seconds of ``python -c code``: the median of `rounds`, after one round that warms the caches."""
    spent = []
    for _ in range(rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(spent[1:])


class Kernel:
    """A real kernel with a store of its own, whose cells are timed from sending to idle."""

    def __init__(self, folder: Path) -> None:
        from jupyter_client.manager import KernelManager

        self.manager = KernelManager(kernel_name="python3")
        environ = os.environ | {"FLOWBOOK_STORE": str(folder / "store"), "FLOWBOOK_NOTEBOOK": str(folder / "bench.ipynb")}
        self.manager.start_kernel(cwd=str(folder), env=environ, extra_arguments=["--log-level=40"])
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.seconds("pass")

    def seconds(self, code: str) -> float:
        """Wall seconds of one cell. Raises RuntimeError if it fails."""
        started = time.perf_counter()
        reply = self.client.execute_interactive(code, timeout=600, output_hook=lambda message: None, allow_stdin=False)
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"].get("traceback", [str(reply["content"])])))
        return time.perf_counter() - started

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


def measure(items: int, rounds: int) -> list[tuple[str, str]]:
    """The rows of the table: what, and how much."""
    bare, package = cpu_seconds(NOTHING, rounds), cpu_seconds("import flowbook", rounds)
    rows = [
        ("python -c pass, CPU", f"{1000 * bare:.0f} ms"),
        ("import flowbook, CPU above that", f"{1000 * (package - bare):+.1f} ms"),
    ]
    with tempfile.TemporaryDirectory(prefix="flowbook-bench-") as folder:
        kernel = Kernel(Path(folder))
        try:
            rows += in_kernel(kernel, items)
        finally:
            kernel.close()
    return rows


def in_kernel(kernel: Kernel, items: int) -> list[tuple[str, str]]:
    rows = [("%load_ext flowbook", f"{1000 * kernel.seconds('%load_ext flowbook'):.0f} ms")]
    defined = kernel.seconds("%%flowstep one\nvalue = 1")
    rows.append(("define a step", f"{1000 * defined:.0f} ms"))
    first = kernel.seconds("%flow run") + kernel.seconds("assert value == 1")
    rows.append(("first run of one step, to its value", f"{1000 * first:.0f} ms"))
    second = kernel.seconds("%flow run") + kernel.seconds("assert value == 1")
    rows.append(("second run of it, to its value", f"{1000 * second:.0f} ms"))
    kernel.seconds(f'%%flowstep each --foreach "i in range({items})" --flow wide\ndone = i')
    kernel.seconds("%%flowstep gather --join each --flow wide\ncount = sum(task.done >= 0 for task in each)")
    wide = kernel.seconds("%flow run --flow wide --wait") + kernel.seconds(f"assert count == {items}")
    rows.append((f"foreach over {items} no-ops, and the join", f"{wide:.2f} s"))
    rows.append(("that is", f"{(items + 1) / wide:.1f} tasks/s"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--items", type=int, default=100, help="items of the wide foreach (default: 100)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each import (default: 7)")
    args = parser.parse_args()
    rows: list[Any] = measure(args.items, args.rounds)
    width = max(len(what) for what, _ in rows)
    print(f"Python {platform.python_version()}, {platform.system()}, {os.cpu_count()} cores")
    for what, much in rows:
        print(f"  {what.ljust(width)}  {much:>12}")


if __name__ == "__main__":
    main()
