"""`python -P -m flowbook.worker`: reads an ORDER as JSON from stdin and carries it out. With `--serial`: the serial reading."""

from __future__ import annotations

import json
import sys


def main() -> None:
    try:
        order = json.load(sys.stdin.buffer)
        if not isinstance(order, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        print(f"flowbook.worker: no order on stdin: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
    import faulthandler

    from flowbook.worker import attempt, output

    faulthandler.enable()
    output.prepare_streams()
    if "--serial" in sys.argv[1:]:
        from flowbook.worker import serial

        attempt.leave(serial.run(order))
    attempt.leave(attempt.run(order))


if __name__ == "__main__":
    main()
