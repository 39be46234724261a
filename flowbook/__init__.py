"""flowbook: steps written in notebook cells, run in pods, their results back in the kernel by name.

`%load_ext flowbook` is the door for notebooks; `from flowbook import flow` its Python twin. Names here are lazy, so that
`import flowbook` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowbook._version import __version__ as __version__
    from flowbook.errors import FlowbookError as FlowbookError
    from flowbook.errors import StepFailed as StepFailed
    from flowbook.kernel.api import flow as flow
    from flowbook.store.values import Directory as Directory
    from flowbook.store.values import File as File
    from flowbook.worker.current import current as current

__all__ = ["Directory", "File", "FlowbookError", "StepFailed", "__version__", "current", "flow"]

_WHERE = {
    "Directory": "flowbook.store.values",
    "File": "flowbook.store.values",
    "FlowbookError": "flowbook.errors",
    "StepFailed": "flowbook.errors",
    "__version__": "flowbook._version",
    "current": "flowbook.worker.current",
    "flow": "flowbook.kernel.api",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'flowbook' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ip: Any) -> None:
    """`%load_ext flowbook`."""
    from flowbook.kernel import load

    load(ip)
