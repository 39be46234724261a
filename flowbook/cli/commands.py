"""The table of commands: name, what it is for, its options, and where it is carried out.

Only the module of the command that is given is imported.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowbook.cli.place import Place

    Act = Callable[[Place, argparse.Namespace], int]


@dataclass(frozen=True)
class Command:
    """`loose`: works without a flow file, too. `flowless`: means nothing for one flow. `parameters`: takes those of the flow."""

    name: str
    help: str
    act: str  # "module:function" in flowbook.cli
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    loose: bool = False
    flowless: bool = False
    parameters: bool = False
    words: Callable[[list[str]], list[str]] = list  # what is typed after the command → what its parser reads

    def load(self) -> Act:
        module, _, function = self.act.partition(":")
        found: Act = getattr(importlib.import_module(f"flowbook.cli.{module}"), function)
        return found


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tag", action="append", metavar="TAG", default=[], help="a tag of the run (repeatable)")
    parser.add_argument("--max-workers", type=_workers, metavar="N", help="most tasks at once; as many as the machine allows if not given")
    parser.add_argument("--run-id-file", metavar="FILE", help="write the run's id there as soon as it is known")
    parser.add_argument("--runner-attribute-file", help=argparse.SUPPRESS)
    for name in ("--max-num-splits", "--max-log-size", "--user-namespace"):
        parser.add_argument(name, dest="ignored", help=argparse.SUPPRESS)  # Metaflow's; there is no such limit


def _resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", nargs="?", metavar="STEP", help="run again from this step on; if not given, only what is missing runs")
    parser.add_argument("--origin-run-id", metavar="RUN", help="the run that is gone on with; the newest if not given")
    _run(parser)


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pylint", "--no-pylint", action="store_true", dest="ignored", help=argparse.SUPPRESS)  # Metaflow's


def _graph(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--dot", action="store_true", help="in the language of Graphviz")
    form.add_argument("--json", action="store_true", help="as JSON")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="RUN/STEP[/TASK]", help="whose output; RUN may be `latest`, which it is if not given")
    parser.add_argument("--attempt", type=_attempt, metavar="K", help="of this attempt, counted from 1; the last if not given")
    parser.add_argument("--stdout", action="store_true", help="stdout and stderr of a task are one text, in the order of printing")
    parser.add_argument("--stderr", action="store_true", help="the same text")


def _dump(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="RUN/STEP[/TASK]", help="whose artifacts; RUN may be `latest`, which it is if not given")
    parser.add_argument("--include", metavar="NAMES", help="only these, separated by commas")
    parser.add_argument("--private", action="store_true", help="those whose names begin with _, too")
    parser.add_argument("--max-value-size", type=int, default=1000, metavar="N", help="characters shown of one value (1000)")


CARD_ACTIONS = ("view", "get", "list")


def _card(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="view|get|list")
    for name, text in (
        ("view", "write it to a file and open it"),
        ("get", "write it to FILE, or print it; what is meant if no word is given: card RUN/STEP > card.html"),
        ("list", "the cards of a task"),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("path", metavar="RUN[/STEP[/TASK]]", help="of a run: its own card and those of its tasks")
        if name != "list":
            action.add_argument("--id", metavar="ID", help="of several cards this one")
        if name == "get":
            action.add_argument("file", nargs="?", metavar="FILE")


def _card_words(words: list[str]) -> list[str]:
    """``card 3/train`` is ``card get 3/train``."""
    return words if not words or words[0] in (*CARD_ACTIONS, "-h", "--help") else ["get", *words]


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="RUN", help="the newest if not given")
    parser.add_argument("-o", "--output", dest="file", metavar="FILE", help="FLOW-RUN.html if not given; `-`: print it")


def _tag(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="add|remove|replace|list")
    for name, text in (("add", "add tags"), ("remove", "remove tags"), ("replace", "one tag for another"), ("list", "the tags of a run")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--run-id", metavar="RUN", dest="run", help="the newest if not given")
        if name != "list":
            action.add_argument("tags", nargs=2 if name == "replace" else "+", metavar="TAG")


def _runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("flow", nargs="?", metavar="FLOW", help="a flow of the store, where no flow file is given")
    parser.add_argument("-n", type=_count, default=20, metavar="N", help="the last N (20); 0: all")
    parser.add_argument("--tag", action="append", default=[], metavar="TAG", help="only runs with this tag (repeatable)")
    parser.add_argument("--state", metavar="STATE", help="only succeeded, failed, stopped or running ones; open: their process is gone")
    parser.add_argument("--json", action="store_true", help="as JSON, a line a run")


def _test(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("step", metavar="STEP", help="the step that runs, alone")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="an artifact that the step reads (repeatable); of a join: inputs=[{…}, {…}]; the item of a foreach: input=JSON",
    )


def _stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="RUN", help="the newest if not given")


def _gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=int, metavar="N", help="keep the last N runs; the setting keep_runs if not given")
    parser.add_argument("--all-flows", action="store_true", help="of all flows of the project")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pod", action="store_true", help="try one small pod in the cluster: image, credentials, store; it is removed")
    parser.add_argument(
        "--with",
        dest="withs",
        action="append",
        metavar="NAME:k=v",
        help="look at the pod of a step with this: kubernetes:image=…,namespace=… or resources:gpu=1 (repeatable)",
    )
    parser.add_argument("--verify", action="store_true", help="read every stored result, too")
    parser.add_argument("--json", action="store_true", help="as JSON, a line a finding")
    parser.add_argument("--rights", action="store_true", help="only print the accounts and Roles, for `kubectl apply -n NAMESPACE -f -`")


def _package(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list"], metavar="list", help="the files that go along with a run, and their sizes")


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", metavar="NOTEBOOK.ipynb")
    parser.add_argument("out", nargs="?", metavar="FLOW.py", help="the notebook's name with .py if not given")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is not what would be written")


def _workers(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _attempt(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_attempt.__name__ = "number of an attempt (1 or more)"
_count.__name__ = "number (0 or more)"
_workers.__name__ = "number of workers (1 or more)"  # argparse names it: "invalid number of workers …"

_TABLE = (
    Command("run", "Run the flow.", "run:run", _run, parameters=True),
    Command("resume", "Go on with an earlier run; what succeeded there does not run again.", "run:resume", _resume, parameters=True),
    Command("check", "Tell everything that is wrong with the flow, without running it.", "look:check", _check, parameters=True),
    Command("show", "What the flow does: its steps, parameters and triggers.", "look:show"),
    Command("graph", "The graph of its steps, as text, dot or JSON.", "look:graph", _graph),
    Command("runs", "The runs of the flow.", "look:runs", _runs, loose=True),
    Command("logs", "What tasks printed, and the tracebacks of those that failed.", "look:logs", _logs, loose=True),
    Command("dump", "The artifacts of tasks.", "look:dump", _dump, loose=True),
    Command("card", "The cards of a run and of its tasks, as HTML files.", "look:card", _card, loose=True, words=_card_words),
    Command("report", "A whole run as one HTML file: graph, parameters, steps, errors, cards.", "look:report", _report, loose=True),
    Command("tag", "Tags of runs.", "change:tag", _tag),
    Command("test", "Run one step alone; nothing is kept.", "single:test", _test, parameters=True),
    Command("package", "The code that goes along with a run.", "look:package", _package),
    Command("stop", "Stop a run, also one that its process has left open, and its pods.", "change:stop", _stop, loose=True),
    Command("gc", "Remove old runs, and data that nothing refers to.", "change:gc", _gc, loose=True),
    Command("doctor", "Whether all that flowbook needs works here: store, cluster, rights, image.", "doctor:doctor", _doctor, loose=True),
    Command("export", "Write the flow of a notebook as a flow file.", "change:export", _export, loose=True, flowless=True),
    Command("version", "The version of flowbook.", "look:version", loose=True),
)
COMMANDS = {command.name: command for command in _TABLE}
