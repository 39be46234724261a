"""What holds for every test: nothing of this machine's settings gets in, and no process stays behind.

Kernels for tests are in tests/kernel/conftest.py, JupyterLab in tests/browser/lab.py.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    # Started in the background by a shell without job control: what tests start would be deaf to Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store, a configuration and an IPython profile of the test's own, for it and for all that it starts.

    Whatever is left of that when the test is over (an engine whose run it left open) is ended.
    """
    for name in os.environ:
        if name.startswith(("FLOWBOOK_", "JPY_")) and name not in ("FLOWBOOK_SCREENSHOTS", "FLOWBOOK_BROWSER_TESTS"):
            monkeypatch.delenv(name)
    store = tmp_path / "store"
    monkeypatch.setenv("FLOWBOOK_STORE", str(store))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "etc"))
    yield
    if store.exists():
        end_processes_of(store)


def end_processes_of(store: Path | str) -> None:
    """Kills the processes that were started for this store, known by their environment."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("FLOWBOOK_STORE") == str(store):
                process.kill()
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
