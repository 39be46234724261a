"""``test STEP``: one step alone, in a worker of its own, with what the command line gives it. Nothing is kept."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from flowbook.cli import FAILED, SUCCEEDED
from flowbook.cli.place import Place
from flowbook.cli.text import clean, has_colours, styled
from flowbook.errors import DefinitionError, Finding, StepFailed

if TYPE_CHECKING:
    from flowbook.build import Program

ITEM, JOINED = "input", "inputs"  # names of --input that stand for the item of a foreach, and for the tasks of a join


def test(place: Place, given: argparse.Namespace) -> int:
    """Exit code 1 if the step fails."""
    from flowbook import build, testing
    from flowbook.cli.run import marks_of, values

    assert place.cls is not None
    program = build.program_of(place.cls, with_marks=marks_of(given.withs, place.settings.cluster is not None))
    program.check()
    inputs = read_inputs(given.input)
    item = inputs.pop(ITEM, testing.NOTHING)
    joined = inputs.pop(JOINED, None)
    if joined is not None and inputs:
        raise DefinitionError(
            Finding("--input", f"{JOINED}=… and {next(iter(inputs))}=… exclude each other", "A join finds only its inputs.")
        )
    colours = has_colours(sys.stdout)
    params = values(place, given.params, None, build.user_name() or "")
    try:
        result = testing.attempt(program, given.step, inputs=joined if joined is not None else inputs or None, params=params, input=item)
    except StepFailed as failed:
        _print_output(failed.advice, colours)
        print(failed.traceback, file=sys.stderr)
        print(f"{styled('error', 'bold red', has_colours(sys.stderr))}: {_told(failed.message, given.step, program)}", file=sys.stderr)
        return FAILED
    _print_output(result.output, colours)
    for warning in result.warnings:
        print(styled(f"! {warning}", "yellow", colours))
    for name, value in sorted(result.artifacts.items()):
        print(f"{styled(name, 'bold', colours)} = {_short(value)}")
    way = ", ".join(result.next) or "nothing: the flow ends"
    print(f"next: {way}" + (f", for each of {len(result.items)} items" if result.items is not None else ""))
    return SUCCEEDED


def _told(message: str, step: str, program: Program) -> str:
    """What failed; of an artifact that was not given, how to give it."""
    from flowbook import testing

    joins = next((node.joins for node in program.graph.nodes if node.name == step), False)
    missing = testing.missing(message.removeprefix(f"step {step}: ").partition(": ")[2], joins)
    if missing is None:
        return message
    name = missing[0]
    way = f"""--input '{JOINED}=[{{"{name}": …}}, …]'""" if joins else f"--input {name}=…"
    return f"step {step} reads {name}, which was not given. Give it: {way}"


def read_inputs(words: list[str]) -> dict[str, Any]:
    """``["lr=0.1", "name=\\"x\\""]`` as values. Raises DefinitionError with all that cannot be read."""
    found: dict[str, Any] = {}
    findings = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            findings.append(Finding("--input", f"{word!r} is not NAME=JSON", 'An example: --input lr=0.1 --input \'names=["a", "b"]\'.'))
            continue
        try:
            found[name] = json.loads(text)
        except ValueError as error:
            remedy = f"A text is written in quotes: --input '{name}={json.dumps(text)}'."
            findings.append(Finding("--input", f"the value of {name} is not JSON: {error}", remedy))
    if findings:
        raise DefinitionError(*findings)
    return found


def _print_output(text: str, colours: bool) -> None:
    for line in text.rstrip("\n").split("\n") if text else ():
        print(clean(line, colours))


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 200 else f"{text[:200]}…"
