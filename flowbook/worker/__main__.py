"""`python -P -m flowbook.worker`: reads an ORDER as JSON from stdin and carries it out.

`--serial`: the serial reading. `--fork-server FD`: serve orders that come over a socket, each in a forked process.
"""

from __future__ import annotations

import json
import sys
from typing import NoReturn


def main() -> None:
    if "--fork-server" in sys.argv[1:]:
        serve(int(sys.argv[-1]))
    try:
        order = json.load(sys.stdin.buffer)
        if not isinstance(order, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        print(f"flowbook.worker: no order on stdin: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    import faulthandler

    from flowbook.worker import attempt, forkserver, output

    faulthandler.enable()
    output.prepare_streams()
    if "--serial" not in sys.argv[1:]:
        forkserver.die_with_parent()
    if "--serial" in sys.argv[1:]:
        from flowbook.worker import serial

        attempt.leave(serial.run(order))
    attempt.leave(attempt.run(order))


def serve(fd: int, *, warm: bool = True) -> NoReturn:
    """A fork server. `warm`: what attempts do is done some times beforehand, which is worth its time if there are many."""
    import faulthandler

    import flowbook.store.compare
    import flowbook.store.files
    import flowbook.store.pickler  # noqa: F401 (what every attempt uses, and would else import by itself)
    from flowbook.worker import attempt, forkserver, output

    faulthandler.enable()
    output.prepare_streams()
    if warm:
        attempt.rehearse()
    forkserver.serve(fd, lambda order: attempt.leave(attempt.run(order)), attempt.prepare)


if __name__ == "__main__":
    main()
