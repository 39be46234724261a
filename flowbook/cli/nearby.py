"""A fork server for the tasks of a run that is a fork of this very process: it need not start a Python and import what is here already.

That halves what a small run costs. It is done only where nobody can tell the difference: the flow's file has been executed in this
process, and each task executes it again as its own `__main__`; so the file may do nothing but import and define, and no thread may
run. In every other case the engine starts its fork servers as usual (engine/launch/fork.py).
"""

from __future__ import annotations

import ast
import builtins
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from flowbook.engine.launch.fork import Begun, connection
from flowbook.spec.flow import Spec

HARMLESS = ("flowbook", "metaflow", "dataclasses", "enum", "functools", "typing")  # calls of what comes from there define something
LOOK_S = 0.005

_ALLOWED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.Pass)


def fork_server(spec: Spec, env: Mapping[str, str]) -> Begun | None:
    """Fork one, with that environment; None where it would not be the same as a new one. Call it before an event loop runs."""
    source = spec.sources.get(spec.program or "", {}).get("source", "")
    if sys.platform != "linux" or spec.modules or spec.setup or not only_defines(source) or _threads() != 1:
        return None
    warm = any(step.options.foreach is not None for step in spec.steps)
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = connection()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _become_server(theirs, env, warm)
    theirs.close()
    return Nearby(pid), ours


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def _become_server(connection: socket.socket, env: Mapping[str, str], warm: bool) -> NoReturn:
    """In the fork: what a server started anew would have."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.environ.clear()
        os.environ.update(env)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        from flowbook.worker.__main__ import serve

        serve(connection.detach(), warm=warm)
    finally:
        os._exit(1)


class Nearby:
    """The forked process, to be waited for."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired, as Popen does."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork server", timeout or 0)
            time.sleep(LOOK_S)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


# ---- what a file does when it is executed ---------------------------------------------------------------------------------


def only_defines(source: str) -> bool:
    """Whether executing a file twice in one process is the same as once: it imports, defines, and gives names to values.

    >>> only_defines("import os\\nclass A: x = 3"), only_defines("import os\\nos.chdir('/')")
    (True, False)
    """
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return False
    body = [statement for statement in body if not _is_main_block(statement)]
    names = _harmless_names(body)
    return bool(body) and all(_is_harmless(statement, names) for statement in body)


def _is_main_block(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test).replace("'", '"') in (
        '__name__ == "__main__"',
        '"__main__" == __name__',
    )


def _harmless_names(body: Sequence[ast.stmt]) -> set[str]:
    """Names of the file that come from there, and the types that are always there."""
    found = {name for name, value in vars(builtins).items() if isinstance(value, type)}
    for statement in body:
        if isinstance(statement, ast.ImportFrom) and not statement.level and (statement.module or "").split(".")[0] in HARMLESS:
            found |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Import):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names if alias.name.split(".")[0] in HARMLESS}
    return found


def _is_harmless(statement: ast.stmt, names: set[str]) -> bool:
    if not isinstance(statement, _ALLOWED):
        return False
    if isinstance(statement, ast.ClassDef):
        if statement.keywords or not all({_root(base), f"class {_root(base)}"} & names for base in statement.bases):
            return False  # a class of others may keep a list of those that derive from it
        if not all(_is_harmless(each, names) for each in statement.body):
            return False
        names.add(f"class {statement.name}")
    if isinstance(statement, ast.Assign) and not all(isinstance(target, ast.Name | ast.Tuple) for target in statement.targets):
        return False
    if isinstance(statement, ast.AnnAssign) and not isinstance(statement.target, ast.Name):
        return False
    return all(not isinstance(part, ast.Call) or _root(part.func) in names for part in _executed(statement))


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a statement that are evaluated when it is executed: of a function its decorators and defaults only."""
    for decorator in getattr(node, "decorator_list", ()):
        if not isinstance(decorator, ast.Call):  # it is called, too
            yield ast.Call(decorator, [], [])
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        inner: list[ast.AST] = [*node.decorator_list, *node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]
    elif isinstance(node, ast.Lambda):
        inner = []
    elif isinstance(node, ast.ClassDef):
        inner = [*node.bases, *node.decorator_list]
    else:
        inner = list(ast.iter_child_nodes(node))
    for each in inner:
        yield each
        yield from _executed(each)


def _root(function: ast.expr) -> str:
    while isinstance(function, ast.Attribute | ast.Call):
        function = function.value if isinstance(function, ast.Attribute) else function.func
    return function.id if isinstance(function, ast.Name) else ""
