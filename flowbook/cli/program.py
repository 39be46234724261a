"""A flow file executed as a program: what ``python flow.py`` does by itself, and ``flowbook COMMAND flow.py`` does here.

The file becomes `__main__`, with its folder first in sys.path and sys.argv set, as Python itself would do it. Where it creates its
flow, that flow takes the command line; where it only defines one, it is found here. An error that the file raises is shown with the
user's own frames only.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowbook.cli.text import meant
from flowbook.errors import DefinitionError, Finding, FlowbookError
from flowbook.store.package import package_above

OURS = str(Path(__file__).resolve().parent.parent) + "/"


@dataclass
class _Started:
    """How this process was started: `file` and `name` as ``flowbook run FILE:NAME`` says them; None under ``python flow.py``."""

    file: Path | None = None
    name: str | None = None


_started = _Started()


def spelled() -> str:
    """How the user types the program of this flow: ``python flow.py``, or ``flowbook``."""
    if _started.file is not None:
        return "flowbook"
    return f"python {sys.argv[0]}" if sys.argv and sys.argv[0] else "python flow.py"


def file_argument() -> str | None:
    """What stands behind the command under ``flowbook``: ``flow.py`` or ``flow.py:Train``."""
    if _started.file is None:
        return None
    return f"{_started.file}:{_started.name}" if _started.name else str(_started.file)


def wanted(cls: type) -> bool:
    """Whether this class is the one of ``flowbook run flow.py:NAME``; without a name every class is."""
    return _started.name in (None, cls.__name__)


def names_file(rest: Sequence[str]) -> bool:
    """Whether the first argument is a flow file, and not the name of a flow in the store."""
    return bool(rest) and not rest[0].startswith("-") and (_split(rest[0])[0].suffix == ".py" or Path(rest[0]).is_file())


def _split(argument: str) -> tuple[Path, str | None]:
    path, colon, name = argument.rpartition(":")
    return (Path(path), name) if colon and name.isidentifier() else (Path(argument), None)


def execute(argument: str, argv: Sequence[str], act: Callable[[type], int]) -> int:
    """Execute a flow file as `__main__`; `act` is what to do with its flow if the file does not create one itself.

    Raises DefinitionError for a file that is not there, cannot be read, has no flow or several; SystemExit as the file does.
    """
    path, name = _split(argument)
    _started.file, _started.name = path, name
    code = _compiled(path)
    main = _as_main(path, argv)
    _resolve_metaflow()
    try:
        exec(code, main.__dict__)
    except FlowbookError:
        raise
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # in the __set_name__ of a parameter: Python makes a RuntimeError of it
            raise KeyboardInterrupt from None
        print(user_traceback(error), end="", file=sys.stderr)
        raise DefinitionError(
            Finding(str(path), f"the file raised {type(error).__name__} before its flow could be read", "Its traceback stands above.")
        ) from None
    return act(_only(classes_in(main), path, name))


def _compiled(path: Path) -> types.CodeType:
    if path.suffix == ".ipynb":
        raise DefinitionError(Finding(str(path), "is a notebook, not a flow file", f"`flowbook export {path}` writes its flow as one."))
    try:
        return compile(path.read_bytes(), str(path), "exec")
    except FileNotFoundError:
        near = meant(path.name, sorted(found.name for found in path.parent.glob("*.py")) if path.parent.is_dir() else [], "Files there")
        raise DefinitionError(Finding(str(path), "there is no such file", near)) from None
    except OSError as error:
        raise DefinitionError(Finding(str(path), f"cannot be read: {error.strerror}", "A flow file is a Python file.")) from None
    except (SyntaxError, ValueError) as error:
        print(user_traceback(error), end="", file=sys.stderr)
        raise DefinitionError(Finding(str(path), "is not valid Python", "What is wrong stands above.")) from None


def _as_main(path: Path, argv: Sequence[str]) -> types.ModuleType:
    top, package = package_above(path.resolve())
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=str(path), __builtins__=__builtins__, __cached__=None, __package__=package or None)
    sys.modules["__main__"] = main
    sys.argv[:] = [str(path), *argv]
    if sys.path and sys.path[0] in ("", str(Path.cwd())) and not sys.flags.safe_path:  # of python -m flowbook
        sys.path.pop(0)
    sys.path.insert(0, str(path.resolve().parent))
    if package and str(top) not in sys.path:
        sys.path.append(str(top))  # so a file inside a package imports from it, by name or relatively
    return main


def _resolve_metaflow() -> None:
    """Let ``import metaflow`` in the file mean flowbook."""
    from flowbook import compat

    compat.install()


def classes_in(module: types.ModuleType) -> list[type]:
    """The flows that a file defines, in its order; a class that others of them build on is not one itself."""
    from flowbook.spec.flowspec import FlowSpec

    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, FlowSpec) and value.__module__ == module.__name__
    ]
    bases = {base for cls in own for base in cls.__mro__[1:]}
    return [cls for cls in dict.fromkeys(own) if cls not in bases]


def _only(classes: list[type], path: Path, name: str | None) -> type:
    names = [cls.__name__ for cls in classes]
    if name is not None:
        found = next((cls for cls in classes if cls.__name__ == name), None)
        if found is None:
            raise DefinitionError(Finding(str(path), f"has no flow {name!r}", meant(name, names, "Flows there")))
        return found
    if not classes:
        raise DefinitionError(Finding(str(path), "has no flow", "A flow is a class that derives from flowbook.FlowSpec."))
    if len(classes) > 1:
        raise DefinitionError(
            Finding(
                str(path),
                f"has {len(classes)} flows: {', '.join(names)}",
                f"Say which one: {path}:{names[0]}. Or keep each in a file of its own.",
            )
        )
    return classes[0]


def user_traceback(error: BaseException) -> str:
    """The traceback without frames of ours and of the machinery that imports."""
    import traceback

    told = traceback.TracebackException.from_exception(error)
    seen: traceback.TracebackException | None = told
    while seen is not None:
        frames = [frame for frame in seen.stack if not frame.filename.startswith((OURS, "<frozen "))]
        seen.stack = traceback.StackSummary.from_list(frames)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return "".join(told.format())
