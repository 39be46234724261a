"""What the machine itself can do: a figure of flowbook's that comes near one of these cannot become much better."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from benchmarks.book import scratch, touch_memory
from benchmarks.measure import Fact, Section, Settings, amount, quantile

MEGABYTES = 256
FORKS = 200
TRIPS = 2000


def run(settings: Settings) -> Section:
    """The best of the rounds: what the machine can do, whoever else used it."""
    data = bytearray(os.urandom(1_000_000) * settings.scaled(MEGABYTES, 4))
    size, target = len(data) / 1e9, memoryview(bytearray(len(data)))
    rounds = min(settings.rounds, 5)

    def best(act: Callable[[], float]) -> float:
        return min(act() for _ in range(rounds + 1))

    facts = [
        Fact("memcpy", f"{amount(size / best(lambda: timed(lambda: target.__setitem__(slice(None), data))))} GB/s"),
        Fact("SHA-256, one thread", f"{amount(size / best(lambda: timed(lambda: hashlib.sha256(data))))} GB/s"),
        Fact("write to a new file", f"{amount(size / best(lambda: write(data, sync=False)))} GB/s"),
        Fact("write to a new file, fsync", f"{amount(size / best(lambda: write(data, sync=True)))} GB/s"),
        Fact(
            "fork, exit, wait: one after another",
            f"{amount(settings.scaled(FORKS, 10) / best(lambda: forks(settings.scaled(FORKS, 10))))} /s",
        ),
        Fact("start of an interpreter that does nothing", f"{amount(1000 * best(start_interpreter))} ms"),
        Fact("loopback, there and back, median", f"{amount(1e6 * best(loopback))} µs"),
    ]
    return Section("machine", facts=facts, notes=[f"The best of {rounds} rounds, {len(data) // 1_000_000} MB each."])


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def write(data: bytearray, sync: bool) -> float:
    touch_memory(2 * len(data) // 1_000_000)
    with scratch() as folder, (folder / "file").open("wb", buffering=0) as file:
        started = time.perf_counter()
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        if sync:
            os.fsync(file.fileno())
        return time.perf_counter() - started


def forks(count: int) -> float:
    """Seconds for `count` processes, each ended before the next: in a small interpreter, since forking a large one takes longer."""
    code = (
        "import os, time\nt = time.perf_counter()\n"
        f"for _ in range({count}):\n    pid = os.fork()\n    if not pid: os._exit(0)\n    os.waitpid(pid, 0)\n"
        "print(time.perf_counter() - t)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def start_interpreter() -> float:
    return timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True))


def loopback() -> float:
    """Seconds of the median round trip of 100 bytes over TCP, between two threads."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def echo() -> None:
            with theirs:
                while got := theirs.recv(1000):
                    theirs.sendall(got)

        thread = threading.Thread(target=echo)
        thread.start()
        times = []
        for _ in range(TRIPS):
            started = time.perf_counter()
            ours.sendall(b"x" * 100)
            ours.recv(1000)
            times.append(time.perf_counter() - started)
        ours.shutdown(socket.SHUT_WR)
        thread.join()
    return quantile(times, 0.5)
