"""`python -P -m flowbook.worker`: one attempt, ordered on stdin. `--serial` reads a finished run serially and compares."""

from __future__ import annotations

import json
import os
import sys


def start() -> None:
    order = json.loads(sys.stdin.buffer.read())
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.close(devnull)
    os.environ.setdefault("MPLBACKEND", "Agg")
    if order.get("frames_fd") is not None:
        os.set_inheritable(order["frames_fd"], False)  # a child of the body must not hold the pipe open
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    if "--serial" in sys.argv:
        from flowbook.worker import serial

        code = serial.main(order)
    else:
        from flowbook.worker import attempt

        code = attempt.main(order)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        pass
    # Threads and atexit hooks that a body left behind must not hold up or change the end.
    os._exit(code)


start()
