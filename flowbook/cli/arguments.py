"""What is typed, parsed: options before and after the command, parameters of the flow as options, nearest spellings.

    python flow.py  --with retry:times=2 --quiet  run  --alpha 0.5 --tag nightly
                    └────── before ─────────────┘      └──── rest ─────────────┘

argparse parses `rest`, by the parser of that one command; `before` is read here, since Metaflow's options of that place are many and
most mean nothing here: they are accepted, and the command says which were ignored. Every mistake is a DefinitionError.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from flowbook.cli.text import has_colours, meant, styled
from flowbook.errors import DefinitionError, Finding

if TYPE_CHECKING:
    from flowbook.cli.commands import Command
    from flowbook.spec.parameters import Parameter

# option → how many values it takes. The first are ours, wherever they stand; the others are Metaflow's and mean nothing here.
OWN = {"--with": 1, "--namespace": 1, "--quiet": 0, "--branch": 1, "--production": 0}  # the last two of @project: before the command only
CONFIGS = ("--config", "--config-value")
IGNORED = {
    "--no-quiet": 0,
    "--metadata": 1,
    "--datastore": 1,
    "--datastore-root": 1,
    "--environment": 1,
    "--event-logger": 1,
    "--monitor": 1,
    "--package-suffixes": 1,
    "--pylint": 0,
    "--no-pylint": 0,
    "--force-rebuild-environments": 0,
    "--no-force-rebuild-environments": 0,
}


@dataclass(frozen=True)
class Given:
    """A command line, cut into what stands before the command, the command, and the rest."""

    command: str
    rest: list[str]
    before: list[str] = field(default_factory=list)
    spelled: str = "flowbook"
    withs: tuple[str, ...] = ()
    namespace: str | None = None
    quiet: bool = False
    branch: str | None = None
    production: bool = False
    ignored: tuple[str, ...] = ()

    def without_file(self) -> Given:
        """After ``flowbook run flow.py``: what is left for the flow itself."""
        return replace(self, rest=self.rest[1:])


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are findings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

    def error(self, message: str) -> NoReturn:
        raise DefinitionError(Finding("", message[:1].lower() + message[1:], f"`{self.prog} --help` lists what can be given."))


class Formatter(argparse.HelpFormatter):
    """Of an option with several spellings only the first is shown."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        long = [name for name in action.option_strings if name.startswith("--")]
        names = [name for name in action.option_strings if not name.startswith("--")] + long[:1]
        shown = ", ".join(names)
        return shown if action.nargs == 0 else f"{shown} {self._format_args(action, action.dest.upper())}"


# ---- before the command ---------------------------------------------------------------------------------------------------


def split(argv: Sequence[str], spelled: str, commands: Mapping[str, Command], cls: type | None = None) -> Given | None:
    """The command line in its parts. None: there was no command, and the overview has been printed.

    Raises DefinitionError for an unknown option or command, SystemExit(0) after ``--help`` and ``--version``.
    """
    argv = _without_configs(argv)
    found: dict[str, list[list[str]]] = {}
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        name, _, value = argv[at].partition("=")
        if name in ("-h", "--help"):
            print(overview(spelled, commands, cls))
            raise SystemExit(0)
        if name == "--version":
            return Given("version", [], spelled=spelled)
        takes = {**OWN, **IGNORED}.get(name)
        if takes is None:
            raise DefinitionError(Finding("", f"there is no option {name} before the command", _remedy(name, spelled, cls)))
        values = [value] if "=" in argv[at] else list(argv[at + 1 : at + 1 + takes])
        if len(values) != takes:
            raise DefinitionError(Finding("", f"{name} takes {('no value', 'a value')[takes]}", f"`{spelled} --help`"))
        found.setdefault(name, []).append(values)
        at += 1 + (takes if "=" not in argv[at] else 0)
    if at == len(argv):
        print(overview(spelled, commands, cls))
        return None
    command = argv[at]
    if command not in commands:
        raise DefinitionError(Finding("", f"there is no command {command!r}", _command_remedy(argv[at:], spelled, commands, cls)))
    return Given(
        command,
        list(argv[at + 1 :]),
        list(argv[:at]),
        spelled,
        withs=tuple(value for (value,) in found.get("--with", ())),
        namespace=found["--namespace"][-1][0] if "--namespace" in found else None,
        quiet="--quiet" in found,
        branch=found["--branch"][-1][0] if "--branch" in found else None,
        production="--production" in found,
        ignored=tuple(name for name in found if name in IGNORED and not name.startswith("--no-")),
    )


def _without_configs(argv: Sequence[str]) -> list[str]:
    """The words without ``--config`` and ``--config-value``; what these say is in force then."""
    if not set(CONFIGS) & set(argv):
        return list(argv)
    from flowbook.spec import parameters

    told = parameters.config_arguments(argv)
    parameters.set_config_sources(told.files, told.values)
    return told.rest


def _command_remedy(words: Sequence[str], spelled: str, commands: Mapping[str, Command], cls: type | None) -> str:
    """Also for who writes the file before the command."""
    file = words[0].partition(":")[0]
    if cls is not None or not file.endswith(".py"):
        return meant(words[0], commands, "Commands")
    command = next((word for word in words[1:] if word in commands), "run")
    return f"The command comes first: write `{spelled} {command} {words[0]}`."


def _remedy(name: str, spelled: str, cls: type | None) -> str:
    parameters = [f"--{option}" for option in _options(cls)]
    if name in parameters:
        return f"It is a parameter of the flow and stands after the command: `{spelled} run {name} …`."
    return meant(name, [*OWN, *parameters], "Options")


def overview(spelled: str, commands: Mapping[str, Command], cls: type | None) -> str:
    """What can be typed, in a page."""
    colours = has_colours(sys.stdout)
    doc = (cls.__doc__ or "").strip().splitlines()[:1] if cls is not None else ["Steps, runs and their results."]
    usage = f"{spelled} [options] COMMAND …" if cls is not None else f"{spelled} [options] COMMAND [FLOW.py] …"
    lines = [f"usage: {usage}", "", *doc, *([""] if doc else []), styled("commands", "bold", colours)]
    shown = [command for command in commands.values() if cls is None or not command.flowless]
    lines += [f"  {command.name:<10} {command.help}" for command in shown]
    lines += ["", styled("options, before or after the command", "bold", colours)]
    lines += [
        "  --with NAME:k=v     a decorator for each step that lacks it (repeatable)",
        "  --quiet             show only what tasks print",
        "  --namespace NAME    whose runs are meant",
        "  --branch NAME, --production (of @project, before the command)",
        "  --config NAME PATH, --config-value NAME JSON",
        "",
        f"`{spelled} COMMAND --help` tells more. Metaflow's --metadata, --datastore, --environment, --no-pylint … are accepted and ignored.",
    ]
    return "\n".join(lines)


# ---- after the command ----------------------------------------------------------------------------------------------------


def parse(command: Command, given: Given, cls: type | None) -> argparse.Namespace:
    """The rest of the command line. `params` holds the parameters of the flow that were given, by option name, as text."""
    parser = Parser(prog=f"{given.spelled} {command.name}", description=_escaped(command.help))
    command.arguments(parser)
    options = _options(cls) if command.parameters else {}
    _add_common(parser, command, set(options))
    group = parser.add_argument_group("parameters of the flow") if options else None
    for option, parameter in options.items():
        assert group is not None
        _add_parameter(group, option, parameter)
    parsed, unknown = parser.parse_known_args(command.words(given.rest))
    if unknown:
        listed = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
        known = [name for action in listed for name in [each for each in action.option_strings if each.startswith("--")][:1]]
        wrong = [_unknown(word, known) for word in unknown if word.startswith("-")]
        raise DefinitionError(*(wrong or [_too_much(unknown, parser.prog)]))
    parsed.params = {option: getattr(parsed, _dest(option)) for option in options if getattr(parsed, _dest(option)) is not None}
    parsed.withs = [*given.withs, *(getattr(parsed, "withs", None) or ())]
    parsed.namespace = getattr(parsed, "namespace", None) or given.namespace
    parsed.quiet = getattr(parsed, "quiet", False) or given.quiet
    return parsed


def _add_common(parser: Parser, command: Command, taken: set[str]) -> None:
    """The options that may stand in either place, unless a parameter of the flow has that name."""
    if command.parameters and "with" not in taken:
        parser.add_argument("--with", dest="withs", action="append", metavar="NAME:k=v", help="a decorator for each step that lacks it")
    if command.name in ("run", "resume") and "yes" not in taken:
        parser.add_argument("--yes", action="store_true", help="in a cluster: more pods and GPUs than the settings allow a run")
    if "quiet" not in taken:
        parser.add_argument("--quiet", action="store_true", help="show only what tasks print")
    if "namespace" not in taken:
        parser.add_argument("--namespace", metavar="NAME", help="whose runs are meant")


def _add_parameter(group: argparse._ArgumentGroup, option: str, parameter: Parameter) -> None:
    """One parameter. Its value stays text here: spec/parameters.py reads it, so that all wrong ones are told at once."""
    names = dict.fromkeys([f"--{option}", f"--{option.replace('_', '-')}"])
    is_flag = parameter.type is bool and not parameter.separator
    flag: dict[str, Any] = {"nargs": "?", "const": "true"} if is_flag else {}
    group.add_argument(*names, dest=_dest(option), metavar=_metavar(parameter), help=_escaped(_help(parameter)), **flag)


def _metavar(parameter: Parameter) -> str:
    kind = parameter.type
    return "LIST" if parameter.separator else str(getattr(kind, "__name__", "value")).upper().removesuffix("TYPE")


def _help(parameter: Parameter) -> str:
    """``learning rate (a number; default 0.1)``."""
    default = parameter.default_text
    end = f"default {default}" if default is not None else "required" if parameter.required else ""
    note = "; ".join(part for part in (parameter.expected, end) if part)
    return f"{parameter.help or ''} ({note})".strip()


def _dest(option: str) -> str:
    return f"param {option}"


def _options(cls: type | None) -> dict[str, Parameter]:
    """Option name → Parameter, of a flow class."""
    if cls is None:
        return {}
    from flowbook.spec.parameters import parameters_of

    return {parameter.name: parameter for parameter in parameters_of(cls).values() if parameter.is_option}


def _unknown(word: str, known: Sequence[str]) -> Finding:
    name = word.partition("=")[0]
    return Finding("", f"there is no option {name}", meant(name, known, "Options"))


def _too_much(words: Sequence[str], prog: str) -> Finding:
    return Finding("", f"{' '.join(words)!r} is too much", f"`{prog} --help` lists what can be given.")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
