"""The kernel side, inside ipykernel: magics, capture, names, and the client of the engine process. Thin: it runs no step.

Read `session.py` first: it holds what a kernel knows, and the other modules are its parts.

    cells.py      the cells that ran, which names they bound, and where they stand in the notebook
    session.py    flows, steps and parameters as defined; from there to a Spec; runs
    capture.py    names of plain cells → entries in the store
    names.py      placeholders, the scan before a cell runs, loading
    engine.py     engine processes: start or find ours, ask it, follow runs
    runs.py       runs of the store: find, attach, go back to one
    classes.py    FlowSpec classes of cells
    debug.py      a task again, in the kernel itself
    exporting.py  the FlowSpec class that is the same flow, as a file
    display.py    the status of a run as HTML and as text
    magics.py     what is typed; parses and calls the session
    api.py        `flow`, the Python twin, and the handles of runs and steps
"""

from __future__ import annotations

from typing import Any


def load(ip: Any) -> None:
    """Set flowbook up in a shell; a second call changes nothing."""
    from flowbook.settings import check_platform

    check_platform()
    from flowbook.kernel.session import attach

    attach(ip)
