"""`%flow doctor`: does all that flowbook rests on hold here? One line a check, and what to do about it.

What is checked for the command line, too, is in engine/doctor; here is what only a kernel has, its notebook and its engine, and how
findings are shown in a notebook.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from flowbook._version import __version__
from flowbook.engine import registry
from flowbook.engine.doctor import machine, storage
from flowbook.engine.doctor.core import MARK, Check, Found, examine, summary
from flowbook.errors import FlowbookError
from flowbook.kernel.cells import notebook_path
from flowbook.kernel.display import STYLE
from flowbook.kernel.engine import ping
from flowbook.kernel.housekeeping import orphans
from flowbook.kernel.names import interruptible
from flowbook.spec.amounts import counted

if TYPE_CHECKING:
    from flowbook.kernel.session import Session

COLOUR = {"ok": "success", "warn": "warn", "bad": "error"}  # of JupyterLab's --jp-…-color1


def doctor(session: Session, *, verify: bool = False, pod: bool = False) -> None:
    """Make all checks and show what they say; with `verify` every blob is read, too; with `pod` a pod is tried in the cluster."""
    from IPython.display import publish_display_data

    begun = time.perf_counter()
    with interruptible():
        found = list(examine(checks(session, verify=verify, pod=pod)))
    last = summary(found, time.perf_counter() - begun)
    publish_display_data({"text/plain": "\n".join([*map(str, found), last]), "text/html": _page(found, last)})


def checks(session: Session, *, verify: bool = False, pod: bool = False) -> list[Check]:
    """All of them. None that needs the kernel's own thread has a deadline."""
    return [
        *machine.checks(session.settings.warnings),
        Check("notebook", "the notebook", partial(_notebook, session), None),
        *storage.checks(session.store, session.settings.keep_runs, verify=verify),
        Check("engine", "the engine", partial(_engine, session), None),
        Check("engine", "what killed engines left", partial(_left_over, session), None),
        Check("cluster", "the cluster", partial(_cluster, session, pod), None),
    ]


def _cluster(session: Session, pod: bool) -> Iterator[Found]:
    from flowbook.engine.doctor.cluster import left_out
    from flowbook.engine.doctor.elsewhere import elsewhere

    why = left_out(session.settings, os.environ, asked=pod)
    if why is not None or session.settings.cluster is None:
        yield from [why] if why is not None else ()
        return
    yield from elsewhere(session.store, session.settings.cluster, pod=pod)


def _page(found: Iterable[Found], last: str) -> str:
    rows = "".join(
        f'<div style="padding-left:1.4em;text-indent:-1.4em;overflow-wrap:anywhere">'
        f'<b style="color:var(--jp-{COLOUR[each.state]}-color1,inherit)">{MARK[each.state]}</b> {html.escape(each.text)}'
        + (f'. <span class="fb-dim">{html.escape(each.remedy)}</span>' if each.remedy else "")
        + (f'<pre style="text-indent:0">{html.escape(each.paste)}</pre>' if each.paste else "")
        + "</div>"
        for each in found
    )
    return f'{STYLE}<div class="flowbook">{rows}<div class="fb-dim">{html.escape(last)}</div></div>'


# ---- what only a kernel has ------------------------------------------------------------------------------------------


def _engine(session: Session) -> Iterator[Found]:
    engine = getattr(session, "engine", None)
    if engine is None:
        yield Found("bad", "this kernel has no engine", "Restart the kernel, then `%load_ext flowbook`.")
        return
    try:
        engine.send({"do": "ping"})  # starts one if there is none, and waits for it
    except FlowbookError as error:
        yield Found("bad", f"the engine does not work: {error}", "Restart the kernel, then `%load_ext flowbook`.")
        return
    notebook = str(notebook_path(session.shell) or "")
    entries = [entry for _, entry in registry.entries(session.store)]
    own = [e for e in entries if e.pid == engine.pid] or [e for e in entries if notebook and e.notebook == notebook and e.lives()]
    answer = ping(own[0].socket) if own else None
    if answer is None:
        yield Found(
            "warn", "an engine runs, but is not listed: a restarted kernel will not find it", f"Can {session.store.local_dir()} be written?"
        )
        return
    text = f"the engine answers (process {answer.get('pid')}, {counted(len(answer.get('runs') or ()), 'open run')})"
    if answer.get("version") != __version__:
        yield Found("warn", f"{text}, but it is of flowbook {answer.get('version')}", "Restart the kernel once its runs have ended.")
    else:
        yield Found("ok", text)
    fork = answer.get("fork") or {}
    if fork.get("unsafe"):
        yield Found("ok", f"steps are started by spawn, which takes longer than fork: {fork['unsafe']}")
    else:
        servers = fork.get("servers") or 0
        word = f"{servers} fork server{'s are' if servers != 1 else ' is'} up" if servers else "a fork server starts with the first run"
        yield Found("ok", f"steps are started by fork ({word})")


def _left_over(session: Session) -> Iterator[Found]:
    left = orphans(session.store)
    engines = sum(orphan.kind == "engine" for orphan in left)
    folders = len(left) - engines
    if left:
        words = [counted(engines, "entry", "entries")] * bool(engines) + [counted(folders, "file or folder", "files and folders")] * bool(
            folders
        )
        yield Found("warn", f"killed engines left something: {', '.join(words)}", "`%flow gc` removes it.")
    else:
        yield Found("ok", "no killed engine has left anything")


def _notebook(session: Session) -> Iterator[Found]:
    path, kernel = notebook_path(session.shell), getattr(session.shell, "kernel", None)
    if kernel is None:
        yield Found("ok", "no notebook, but a terminal: steps are in the order of their definition")
        return
    if path is None:
        yield Found(
            "warn",
            "the notebook's path is not known: the flow is called notebook, and the order of cells is that of their first run",
            "Set the variable FLOWBOOK_NOTEBOOK to its path before the kernel starts.",
        )
    else:
        yield Found("ok", f"notebook {path}")
    now = session.cells.now
    if now is not None and now.cell_id is None:
        yield Found(
            "warn",
            "the client sends no cell ids: the order of cells is that of their first run, and a renamed step leaves the old one",
            "After renaming a step cell, `%flow drop` the old name.",
        )
    else:
        yield Found("ok", "the client sends cell ids")
