"""The command line: ``python flow.py COMMAND …``, ``flowbook COMMAND flow.py …`` and ``python -m flowbook …``.

`main_flow` is where a FlowSpec arrives that is created outside a worker; `main` is the program `flowbook`. Both parse the options
that stand before the command, look the command up in `commands.COMMANDS` and turn every error of ours into a message and an exit
code: a traceback that is shown is the user's own. Nothing here decides what a run does; `run.py` drives one, the rest reads the store.

    arguments.py   parsers, options in both places, nearest spellings
    program.py     a flow file executed as __main__, and the classes in it
    place.py       which flow, which store, how commands are spelled
    commands.py    the table of commands
    run.py         run, resume: a run driven in this process
    leftover.py    a run whose process is gone while its pods go on: taken over, or stopped
    progress.py    what is shown meanwhile: plain lines, or a live table on a terminal
    look.py        commands that read: show, graph, runs, logs, dump, card
    change.py      commands that write: tag, stop, gc, export
    doctor.py      doctor: whether all that flowbook needs works here
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from flowbook.errors import DefinitionError, Finding, FlowbookError, SettingError, StoreMissing

if TYPE_CHECKING:
    from flowbook.cli.arguments import Given

SUCCEEDED = 0
FAILED = 1  # the run failed, or what was asked for could not be done
WRONG = 2  # wrong usage, wrong parameters, findings of the check
NOT_CONFIGURED = 3  # something that is asked for is not set up here: a cluster
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM


class NotConfigured(FlowbookError):
    """What was asked for needs something that is not set up here."""


def main(argv: Sequence[str] | None = None) -> int:
    """The program `flowbook`. Gives the exit code."""

    def act() -> int:
        from flowbook.cli import arguments, commands, program  # in here, so that Ctrl-C meanwhile ends quietly

        given = arguments.split(list(sys.argv[1:] if argv is None else argv), "flowbook", commands.COMMANDS)
        if given is None:
            return WRONG
        command = commands.COMMANDS[given.command]
        if command.flowless or (command.loose and not program.names_file(given.rest)):
            return _act(None, given)
        if not given.rest or given.rest[0].startswith("-"):
            usage = f"It is written `flowbook {given.command} FLOW.py …`."
            raise DefinitionError(Finding("", f"{given.command} needs a flow file", usage))
        return program.execute(given.rest[0], _back(given), lambda cls: _act(cls, given.without_file()))

    return guarded(act)


def main_flow(cls: type, argv: Sequence[str] | None = None) -> None:
    """A flow class was created by its file: do what the command line says, and end the process with the exit code.

    Comes back only under ``flowbook COMMAND file.py:Other``, for a class that is not the one asked for.
    """
    try:
        from flowbook.cli import program
    except KeyboardInterrupt:
        _leave(_interrupted())
    if not program.wanted(cls):
        return
    if getattr(sys.modules.get("__main__"), "__file__", None) is None:  # its arguments are not meant for a flow
        remedy = f"In a notebook: `%flow run {cls.__name__}`. In a file: `if __name__ == '__main__': {cls.__name__}()`."
        raise DefinitionError(Finding(f"{cls.__name__}()", "is the command line of a flow file, and here is none", remedy))

    def act() -> int:
        from flowbook.cli import arguments, commands

        given = arguments.split(list(sys.argv[1:] if argv is None else argv), program.spelled(), commands.COMMANDS, cls)
        return WRONG if given is None else _act(cls, given)

    _leave(guarded(act))


def guarded(act: Any) -> int:
    """Carry out `act`; what goes wrong becomes a message on stderr and an exit code."""
    try:
        code = act()
        sys.stdout.flush()
        return int(code)
    except (DefinitionError, SettingError) as error:
        _tell(error)
        return WRONG
    except NotConfigured as error:
        _tell(error)
        return NOT_CONFIGURED
    except FlowbookError as error:
        _tell(error)
        return WRONG if isinstance(error, StoreMissing) else FAILED
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCEEDED
    except OSError as error:  # a file that was named cannot be written, a disk is full
        _tell(FlowbookError(str(error)))
        return FAILED


def _act(cls: type | None, given: Given) -> int:
    from flowbook.cli import arguments, commands
    from flowbook.cli.place import Place

    command = commands.COMMANDS[given.command]
    place = Place.of(cls, given)
    parsed = arguments.parse(command, given, cls)
    return command.load()(place, parsed)


def _back(given: Given) -> list[str]:
    return [*given.before, given.command, *given.rest[1:]]


def _interrupted() -> int:
    print("interrupted; nothing was started", file=sys.stderr)  # a run that was started says more, in run.py
    exec("")  # else Python, which met the interrupt in an exec of dataclasses, ends by the signal and not with our code
    return INTERRUPTED


def _leave(code: int) -> NoReturn:
    raise SystemExit(code)


def _tell(error: FlowbookError) -> None:
    from flowbook.cli.text import error_text

    sys.stdout.flush()
    print(error_text(error), file=sys.stderr)
