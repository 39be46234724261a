"""metaflow: a flow of one trivial step, started from Python as a notebook would start it, and its artifact read."""

import json
import sys
import time
from pathlib import Path

from metaflow import Runner

FLOW = Path(__file__).with_name("metaflow_one.py")


def main() -> None:
    for turn, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        with Runner(str(FLOW), show_output=False, pylint=False).run(turn=turn) as running:
            value = running.run["one"].task["value"].data
        seconds = time.perf_counter() - started
        assert value == turn + 1
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
