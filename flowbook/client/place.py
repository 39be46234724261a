"""Where the client looks: which store, and in which namespace; and what it says when something is not there.

A namespace is a tag: outside of it, runs are not seen. It is `user:NAME` of whoever asks until `namespace()` sets another, and
None is all runs. A run of which nobody wrote down the user is in everybody's namespace: better seen than lost. Both store and
namespace belong to the process. Nothing here reads a run.
"""

from __future__ import annotations

import difflib
import getpass
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from flowbook import compat
from flowbook.errors import DefinitionError, Finding, FlowbookError
from flowbook.settings import load_settings
from flowbook.store import layout, preview, results
from flowbook.store.base import Store, open_store

USER = "user:"
_FILES = "files@"
_SHOWN = 12  # of the names there are, in a message


class NotFound(FlowbookError, KeyError):
    """There is no flow, run, step, task or artifact of that name. A KeyError too, so that `in` and `get` habits work."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NamespaceMismatch(FlowbookError):
    """It is there, but not in the namespace."""


class RunBusy(FlowbookError):
    """The run cannot be removed: it is running, or others rest on it."""


def not_found(what: str, name: str, names: Iterable[str], there: str) -> NotFound:
    """``There is no step 'trian' in Run('F/1'). Did you mean 'train'?``; without a near one, what there is."""
    known = list(names)
    near = difflib.get_close_matches(name, known, 1)
    if near:
        hint = f"Did you mean {near[0]!r}?"
    else:
        hint = (
            f"There {'is' if len(known) == 1 else 'are'}: {', '.join(known[:_SHOWN])}{', …' if len(known) > _SHOWN else ''}."
            if known
            else ""
        )
    return NotFound(f"there is no {what} {name!r} {there}. {hint or 'There is none yet.'}")


# ---- the store --------------------------------------------------------------------------------------------------------------

_chosen: Store | None = None


def store() -> Store:
    """The store that `metadata` chose; else, inside a task or a notebook with flowbook, theirs; else that of the settings here."""
    if _chosen is not None:
        return _chosen
    if results._reader is not None:
        return results._reader.store
    if (loaded := _of_notebook()) is not None:
        return loaded
    settings = load_settings(Path.cwd(), os.environ)
    preview.use(max(preview.mode(), settings.previews, key=preview.MODES.index))
    return open_store(settings.place)


def _of_notebook() -> Store | None:
    session = getattr(sys.modules.get("flowbook.kernel.session"), "_session", None)
    found: Store | None = getattr(session, "store", None)
    return found


def metadata(where: str | Store | None) -> str:
    """Choose the store of this process: ``files@/folder/of/a/project``, ``s3://bucket/prefix/project``, a store, or None for the
    one of the settings, which also say how a bucket is reached.

    Gives what `get_metadata` gives. Raises DefinitionError for anything else, and for a folder that is not there.
    """
    global _chosen
    if isinstance(where, str) and layout.S3_URL.match(where):
        root, _, project = where.rstrip("/").rpartition("/")
        if root in ("s3:", "s3:/"):
            root, project = where.rstrip("/"), ""
        where = open_store(replace(load_settings(Path.cwd(), os.environ), store=root, project=project).place)
    if isinstance(where, str):
        path = Path(where.removeprefix(_FILES)).expanduser()
        if not where.startswith(_FILES) or not path.is_dir():
            why = f"{path} is no folder" if where.startswith(_FILES) else f"{where!r} does not begin with {_FILES!r}"
            raise DefinitionError(
                Finding(
                    "metadata",
                    why,
                    f"Give {_FILES}/folder/of/a/project or s3://bucket/prefix/project, where runs are kept; None: as the settings say.",
                )
            )
        where = open_store({"kind": "files", "root": str(path)})
    _chosen = where
    return get_metadata()


def get_metadata() -> str:
    """Where runs are looked for, as `metadata` takes it."""
    found = store()
    root = getattr(found, "root", None)
    return f"{_FILES}{root}" if root is not None else found.where


def default_metadata() -> str:
    """Back to the store of the settings."""
    return metadata(None)


# ---- the namespace ----------------------------------------------------------------------------------------------------------


class _Default:
    """No namespace was set."""


_namespace: str | type[_Default] | None = _Default


def user() -> str | None:
    """Who asks; None where the system knows no name. Root is a user like others. METAFLOW_USER counts where metaflow means flowbook."""
    if compat.installed() and (name := os.environ.get("METAFLOW_USER")):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None


def get_namespace() -> str | None:
    """The namespace that holds now; None: all runs are seen."""
    if _namespace is _Default:
        name = user()
        return f"{USER}{name}" if name else None
    assert _namespace is None or isinstance(_namespace, str)
    return _namespace


def namespace(name: str | None) -> str | None:
    """See only runs with this tag from now on (``user:ann``, ``production:…``, any tag); None: all. Gives the namespace.

    Raises DefinitionError for anything but a text or None.
    """
    global _namespace
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise DefinitionError(Finding("namespace", f"{name!r} is no namespace", "Give a tag, such as 'user:ann', or None for all runs."))
    _namespace = name
    return get_namespace()


def default_namespace() -> str | None:
    """Back to the namespace with which a process begins, ``user:NAME``. Gives it."""
    global _namespace
    _namespace = _Default
    return get_namespace()


def is_visible(run_user: str | None, tags: Iterable[str], within: str | None) -> bool:
    """Whether a run is in a namespace."""
    if within is None or within in tags:
        return True
    return within.startswith(USER) and run_user in (None, within.removeprefix(USER))
