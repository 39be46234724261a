"""The options of a step cell: the line ``%%flowstep NAME …`` and the ``#|`` lines under it become `Options`.

OPTIONS is the whole table: the parser, the help text and the completion are made from it. Parsing keeps which options
were given (`Given`), so that `%flow defaults` can fill in the others: `parse_step_line` → `merge` → `make_options`.
A line is split as a POSIX shell would (shlex). All that is wrong with a cell's options is said at once.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import keyword
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from flowbook.errors import DefinitionError, Finding
from flowbook.spec.flow import Card, Checkpoint, Foreach, Options, Resources, Retry
from flowbook.spec.retries import WORDS
from flowbook.spec.secrets import HOW, WrongSource, parse_source
from flowbook.store import layout

Given = Mapping[str, Any]  # option without dashes → its parsed value; only options that were written

RESERVED_STEPS = frozenset({"flow", "current", "scratch", "card", "checkpoint"})  # flowbook binds these names itself
MOST_RETRIES = 1000
MOST_DEVICES = 1024
MOST_MEMORY_MB = 10**8  # 100 TB
AMBIGUOUS_MEMORY_MB = 256  # a bare number below this was surely meant in another unit
LEAST_MEMORY_MB = 16  # no Python starts in less
MOST_FACTOR = 100.0  # of --backoff


class Refused(Exception):
    """A value that an option, or an argument of a decorator, does not take: what is wrong with it, and what to write."""

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(what)


@dataclass(frozen=True)
class Option:
    """One row of OPTIONS. Without `metavar` it takes no value. `per_step`: has no sense as a default of all steps.

    `alone`: the value when none follows; None: one must follow.
    """

    name: str  # "--retry"
    metavar: str
    help: str
    parse: Callable[[str], Any]
    repeatable: bool = False
    per_step: bool = False
    alone: str | None = None

    @property
    def key(self) -> str:
        return self.name[2:]


# ------------------------------------------------------------------------------------------------------- values of options


def _flag(text: str) -> bool:
    return True


def _identifiers(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        _identifier(name)
    return tuple(dict.fromkeys(names))


def _identifier(text: str) -> str:
    if not text.isidentifier() or keyword.iskeyword(text):
        raise Refused(f"{text!r} is not a name" if text else "a name is missing", "write names, separated by commas: a,b")
    return text


def _variable(text: str) -> str:
    name = _identifier(text)
    if name.startswith("_"):
        raise Refused(f"{text!r} begins with an underscore, so it would not be saved", "use a public name, such as error")
    return name


def _outputs(text: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """``a,b`` → (("a", "b"), ()); ``+a,+b`` → (None, ("a", "b"))."""
    parts = [part.strip() for part in text.split(",")]
    added = [part.startswith("+") for part in parts]
    if any(added) and not all(added):
        raise Refused("some names have a + and some have none", "--out a,b saves only these; --out +a,+b saves these as well")
    names = _identifiers(",".join(part.lstrip("+") for part in parts))
    return (None, names) if all(added) else (names, ())


def _expression(text: str) -> str:
    """An expression that can be evaluated apart from the body: neither a statement nor with effects on names."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Refused(f"not an expression ({getattr(error, 'msg', None) or error})", "write a Python expression in quotes") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
            raise Refused("the expression may not assign, await or yield", "compute the value in a step above and use its name here")
    return text.strip()


def parse_foreach(text: str) -> Foreach:
    """``i, lr in enumerate(rates)``, split by the grammar of Python; ``x in xs if x > 1`` filters as in a comprehension.

    Raises DefinitionError.
    """
    try:
        return _foreach(text)
    except Refused as refused:
        raise DefinitionError(Finding("--foreach", refused.what, refused.remedy)) from None


def _foreach(text: str) -> Foreach:
    line = " ".join(text.split("\n")).strip()
    loop = _loop_statement(line) or _loop_of_comprehension(line)
    if loop is None:
        raise Refused("not of the form TARGET in ITEMS", 'write --foreach "x in xs", in quotes; the items may be any expression')
    target, expr = loop
    names = tuple(dict.fromkeys(_bound_names(target)))
    _expression(expr)
    return Foreach(_target_text(target), expr, names)


def _target_text(target: ast.expr) -> str:
    if not isinstance(target, ast.Tuple):
        return ast.unparse(target)
    return ", ".join(map(ast.unparse, target.elts)) + ("," if len(target.elts) == 1 else "")


def _loop_statement(line: str) -> tuple[ast.expr, str] | None:
    source = f"for {line}: pass"
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if len(body) != 1 or not isinstance(loop := body[0], ast.For) or not isinstance(loop.body[0], ast.Pass):
        return None
    items = ast.get_source_segment(source, loop.iter) or ast.unparse(loop.iter)
    return loop.target, items if _stands_alone(items) else f"({items})"


def _stands_alone(text: str) -> bool:
    """Whether an expression needs no parentheses around it: neither ``1, 2`` nor ``y := x``."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return not isinstance(tree, ast.Tuple) or text.startswith("(")


def _loop_of_comprehension(line: str) -> tuple[ast.expr, str] | None:
    try:
        tree = ast.parse(f"[0 for {line}]", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if not isinstance(tree, ast.ListComp) or len(tree.generators) != 1 or tree.generators[0].is_async:
        return None
    target = tree.generators[0].target
    return target, f"[{ast.unparse(_as_value(target))} for {line}]"


def _as_value(target: ast.expr) -> ast.expr:
    return ast.Tuple(target.elts, ast.Load()) if isinstance(target, ast.List) else target


def _bound_names(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List) and target.elts:
        for part in target.elts:
            yield from _bound_names(part)
    elif isinstance(target, ast.Starred):
        yield from _bound_names(target.value)
    else:
        raise Refused(f"cannot loop with {ast.unparse(target)!r}", 'loop with names: --foreach "x in xs" or "i, x in enumerate(xs)"')


def _whole(limit: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) > limit:
            raise Refused("not a number that it takes", f"write a whole number from 0 to {limit}")
        return int(text)

    return parse


def _minutes(text: str) -> float:
    value = _number(text)
    if value is None or value < 0:
        raise Refused("not a number of minutes", "write minutes, 0 or more; fractions such as 0.5 are fine")
    return value


def cores(text: str) -> float:
    value = _number(text)
    if value is None or not 0 < value <= MOST_DEVICES:
        raise Refused("not a number of cores", f"write a number above 0 and up to {MOST_DEVICES}; fractions such as 0.5 are fine")
    return value


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,12}(\.\d*)?|\.\d+", text) else None


_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """Seconds of ``2h``, ``90s``, ``1h30m``, ``1.5h``, or of a bare number of seconds. Raises DefinitionError."""
    try:
        return _duration(text)
    except Refused as refused:
        raise DefinitionError(Finding("", f"{text!r}: {refused.what}", refused.remedy)) from None


def _duration(text: str) -> float:
    parts = re.fullmatch(r"(?:(\d+\.?\d*)d)?(?:(\d+\.?\d*)h)?(?:(\d+\.?\d*)m)?(?:(\d+\.?\d*)s)?", text.replace(" ", "").lower())
    bare = _number(text)
    if bare is not None:
        seconds = bare
    elif parts and any(parts.groups()):
        seconds = sum(float(part) * unit for part, unit in zip(parts.groups(), _SECONDS.values(), strict=True) if part)
    else:
        raise Refused("not a time", "write 90s, 15m, 2h, 1h30m, or a bare number of seconds")
    if seconds <= 0:
        raise Refused("no time at all", "write a time above 0, such as 15m")
    return seconds


_BYTES = {
    **dict.fromkeys(("m", "mb"), 10**6),
    **dict.fromkeys(("g", "gb"), 10**9),
    **dict.fromkeys(("t", "tb"), 10**12),
    **dict.fromkeys(("mi", "mib"), 2**20),
    **dict.fromkeys(("gi", "gib"), 2**30),
    **dict.fromkeys(("ti", "tib"), 2**40),
}


def memory(text: str) -> int:
    """Megabytes of 10**6 bytes. A bare number counts these, as in ``@resources(memory=64000)``. Raises Refused."""
    megabytes = _megabytes(text, "memory", AMBIGUOUS_MEMORY_MB)
    if megabytes < LEAST_MEMORY_MB:
        raise Refused("too little for Python to start", f"write at least {LEAST_MEMORY_MB}MB")
    return megabytes


def disk(text: str) -> int:
    """Megabytes of 10**6 bytes. Raises Refused."""
    return _megabytes(text, "disk space", AMBIGUOUS_MEMORY_MB)


def shared_memory(text: str) -> int:
    """Megabytes of 10**6 bytes; small numbers are usual here. Raises Refused."""
    return _megabytes(text, "shared memory", LEAST_MEMORY_MB)


def _megabytes(text: str, of: str, ambiguous: int) -> int:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", text.strip())
    if found is None or (found[2] and found[2].lower() not in _BYTES):
        raise Refused(f"not an amount of {of}", "write 500MB, 32GB, 30GiB, or a bare number of megabytes such as 32000")
    megabytes = math.ceil(Fraction(found[1]) * _BYTES.get(found[2].lower(), 10**6) / 10**6)
    if not found[2] and megabytes < ambiguous:
        gigabytes = f"{found[1]}GB ({math.ceil(Fraction(found[1]) * 1000)})"
        raise Refused(
            f"a bare number is megabytes, and {found[1]} MB is hardly meant", f"did you mean {gigabytes}? Else write {found[1]}MB"
        )
    if megabytes > MOST_MEMORY_MB:
        hint = f"did you mean {math.ceil(megabytes / 10**6)}MB? A bare number is megabytes" if not found[2] else "the most is 100TB"
        raise Refused("more than any machine has", hint)
    return megabytes


def factor(text: str) -> float:
    """Of --backoff. Raises Refused."""
    value = _number(text)
    if value is None or not 1 <= value <= MOST_FACTOR:
        raise Refused(f"not a factor from 1 to {MOST_FACTOR:g}", "2 doubles the wait each time, 1 keeps it")
    return value


def share(text: str) -> float:
    """Of --jitter. Raises Refused."""
    value = _number(text)
    if value is None or value > 1:
        raise Refused("not a share from 0 to 1", "0.2 makes each wait longer or shorter by up to a fifth")
    return value


def error_names(text: str) -> tuple[str, ...]:
    """``ValueError,requests.Timeout,oom``: names of exception classes, and the words of retries.WORDS. Raises Refused."""
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name in WORDS or all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split(".")):
            continue
        remedy = f"write names such as ValueError,requests.Timeout; or one of {', '.join(sorted(WORDS))}"
        raise Refused(f"{name!r} is not the name of an error" if name else "a name is missing", remedy)
    return tuple(dict.fromkeys(names))


def _card_type(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.-]{0,99}", text):
        raise Refused("not a type of card", "write --card, --card blank, or the name of a type of your own")
    return text


def refresh_interval(text: str) -> float:
    """Seconds. Raises Refused."""
    value = _number(text)
    if value is None or not 0 < value <= 3600:
        raise Refused("not a number of seconds", "write seconds, above 0 and up to 3600, such as 2 or 0.5")
    return value


def _secret(text: str) -> str:
    try:
        source = parse_source(text)
    except WrongSource as wrong:
        raise Refused(str(wrong), HOW) from None
    if source.kind == "inline":
        raise Refused(
            "a secret does not belong into the text of a cell, which is stored", "name where it is: env:NAME, file:PATH, kubernetes:NAME"
        )
    return source.to_text()


def _image(text: str) -> str:
    if not re.fullmatch(r"[\w.:/@-]{1,300}", text):
        raise Refused("not the name of an image", "write REGISTRY/NAME:TAG, such as python:3.11")
    return text


def _requirements(text: str) -> str:
    """Requirements as pip takes them, with single spaces; no options of pip."""
    words = text.split()
    wrong = next((word for word in words if not re.match(r"[A-Za-z0-9]", word)), None)
    if not words or wrong is not None:
        raise Refused(
            f"{wrong!r} is no requirement" if wrong else "no requirement", "write names with versions, in quotes: 'numpy==2.1 pandas>=2.2'"
        )
    return " ".join(words)


def _min_ok(text: str) -> str:
    percent = re.fullmatch(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", text)
    if percent and 0 < Fraction(percent[1]) <= 100:
        return f"{percent[1]}%"
    if re.fullmatch(r"\d{1,6}", text):
        return text
    raise Refused("neither a share nor a number of items", "write 90% or a whole number such as 12")


def min_ok_count(text: str, n: int) -> int:
    """How many of `n` items must succeed for ``--min-ok text``; a share is rounded up, a number is at most `n`.

    >>> min_ok_count("90%", 11), min_ok_count("12", 20), min_ok_count("12", 5)
    (10, 12, 5)
    """
    if text.endswith("%"):
        return math.ceil(Fraction(text[:-1]) * n / 100)
    return min(int(text), n)


def _glob(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise Refused("no pattern", 'write a path or a pattern, such as --files "data/*.csv"')
    return text


_SECRET_WORDS = frozenset({"SECRET", "TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY", "CREDENTIALS"})
_SECRET_PAIRS = frozenset({("API", "KEY"), ("ACCESS", "KEY"), ("PRIVATE", "KEY"), ("AUTH", "KEY"), ("ENCRYPTION", "KEY")})
_SECRET_VALUES = re.compile(
    r"AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-\w+|sk-[\w-]{16,}|hf_\w{20,}|xox[abp]-|-----BEGIN |eyJ[\w-]{10,}\.eyJ|://[^/\s:@]+:[^/\s@]+@"
)


def looks_secret(name: str, value: str) -> bool:
    """Whether ``name=value`` is likely a secret: by words in the name, or by the well-known forms of tokens and keys.

    >>> looks_secret("HF_TOKEN", "hf_abc"), looks_secret("TOKENIZERS_PARALLELISM", "false"), looks_secret("TOKEN_LIMIT", "8")
    (True, False, False)
    """
    words = name.upper().split("_")
    named = bool(_SECRET_WORDS & set(words)) or any(pair in _SECRET_PAIRS for pair in itertools.pairwise(words))
    plain = re.fullmatch(r"\d{0,6}|true|false|yes|no|on|off|none", value, re.IGNORECASE) is not None
    return (named and not plain) or _SECRET_VALUES.search(value) is not None


def _environment(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Refused(f"{name!r} is not a variable's name", "write --env NAME=VALUE, or --env NAME to take the kernel's own value")
    if equals and looks_secret(name, value):
        raise Refused(
            "the value looks like a secret, and the text of a cell is stored with the notebook and the run",
            f"set it in the kernel's environment and write --env {name}, which is never stored",
        )
    return name, value if equals else None


def _flow_name(text: str) -> str:
    if not layout.FLOW_NAME.match(text):
        raise Refused(f"{text!r} is not a flow's name", "use letters, digits and _ . - (at most 100)")
    return text


OPTIONS: tuple[Option, ...] = (
    Option("--foreach", '"x in xs"', "run the step once for each item, each in a task of its own", _foreach, per_step=True),
    Option("--join", "a,b", "bind each step's name to its tasks, and close one level of --foreach", _identifiers, per_step=True),
    Option("--after", "a,b", "come after these steps, without reading from them", _identifiers, per_step=True),
    Option("--when", "EXPR", "run only if this is true", _expression, per_step=True),
    Option("--always", "", "run whatever happened above: to notify, to clean up", _flag, per_step=True),
    Option("--out", "a,b | +x", "save only these names; with + save these as well", _outputs, per_step=True),
    Option("--files", "GLOB", "bring input files along; their content counts for the cache (repeatable)", _glob, repeatable=True),
    Option("--retry", "N", "try again up to N times", _whole(MOST_RETRIES)),
    Option("--minutes-between-retries", "M", "wait so long before each new attempt (default: 2)", _minutes),
    Option("--backoff", "X", "make each wait X times as long as the one before (default: 1)", factor),
    Option("--jitter", "X", "make each wait longer or shorter by up to this share, such as 0.2", share),
    Option("--retry-only", "A,B", "try again only after these errors: names of classes, oom, timeout, killed, lost, exit", error_names),
    Option("--retry-unless", "A,B", "do not try again after these errors", error_names),
    Option("--timeout", "TIME", "stop an attempt after 90s, 15m, 2h, 1h30m; a bare number is seconds", _duration),
    Option("--catch", "VAR", "go on after a failure, with the error in VAR (None when all went well)", _variable, per_step=True),
    Option("--min-ok", "90% | N", "with --foreach: go on when so many items succeeded", _min_ok, per_step=True),
    Option("--cpu", "X", "cores (default: 1)", cores),
    Option("--memory", "SIZE", "32GB, 500MB, 30GiB; a bare number is megabytes of 10**6 bytes", memory),
    Option("--gpu", "N", "whole GPUs", _whole(MOST_DEVICES)),
    Option("--disk", "SIZE", "500GB; a bare number is megabytes of 10**6 bytes", disk),
    Option("--env", "K=V | K", "set an environment variable; K alone takes the kernel's value (repeatable)", _environment, repeatable=True),
    Option("--secret", "NAME", "set secret variables, from env:NAME, file:PATH, kubernetes:NAME, … (repeatable)", _secret, repeatable=True),
    Option("--image", "IMAGE", "image of the step's pod in a cluster, such as python:3.11", _image),
    Option(
        "--pip", "REQUIREMENTS", "packages that such a pod installs first: 'numpy==2.1 pandas' (repeatable)", _requirements, repeatable=True
    ),
    Option("--spot", "", "let such a pod run on a node that may be taken away", _flag),
    Option(
        "--card",
        "[TYPE]",
        "keep a card of each task: default, blank, or a type of your own (repeatable)",
        _card_type,
        True,
        alone="default",
    ),
    Option("--refresh-interval", "S", "store a card that changes at most every S seconds (default: 5)", refresh_interval),
    Option("--checkpoint", "", "go on after a failure from what save_checkpoint kept", _flag),
    Option("--no-cache", "", "always run the step, whatever an earlier run made (a resume takes it)", _flag),
    Option("--cache-for", "TIME", "take a result of an earlier run only if it is not older than 1h, 30m, 7d", _duration),
    Option(
        "--cache-key",
        "EXPR",
        "run the step anew if this expression, evaluated in the kernel when the run starts, has another value",
        _expression,
        per_step=True,
    ),
    Option("--flow", "NAME", "the flow this step belongs to (default: the notebook's name)", _flow_name, per_step=True),
    Option("--run", "", "run the step at once, with the steps above it", _flag, per_step=True),
)
_BY_NAME = {option.name: option for option in OPTIONS}


def help_text() -> str:
    """The table of all options, one line each."""
    left = [f"  {option.name} {option.metavar}".rstrip() for option in OPTIONS]
    width = max(map(len, left))
    return "\n".join(f"{text.ljust(width)}  {option.help}" for text, option in zip(left, OPTIONS, strict=True))


# ------------------------------------------------------------------------------------------------------------- reading lines


def parse_step_line(line: str, option_lines: Sequence[tuple[int, str]], *, label: str) -> tuple[str, Given]:
    """NAME and options of ``%%flowstep`` (`line`) and of the ``#|`` lines under it: (line number in the cell, text after ``#|``).

    Raises DefinitionError with all that is wrong.
    """
    findings: list[Finding] = []
    given: dict[str, Any] = {}
    names: list[str] = []
    for where, text in [
        (label, line),
        *((f"{label}, line {number}" if label else f"line {number}", text) for number, text in option_lines),
    ]:
        try:
            tokens = shlex.split(text)
        except ValueError as error:
            findings.append(Finding(where, f"the options cannot be read: {str(error).lower()}: {text.strip()}", "close the quotes"))
            continue
        names += _read_tokens(tokens, where, given, findings)
    findings += _check_names(names, given, label)
    if findings:
        raise DefinitionError(*findings)
    return names[0], given


def parse_defaults(text: str | Sequence[str], *, label: str = "%flow defaults") -> Given:
    """The options of ``%flow defaults …``, as a line or as its words. Raises DefinitionError with all that is wrong."""
    findings: list[Finding] = []
    given: dict[str, Any] = {}
    try:
        tokens = shlex.split(text) if isinstance(text, str) else list(text)
    except ValueError as error:
        raise DefinitionError(Finding(label, f"the options cannot be read: {str(error).lower()}", "close the quotes")) from None
    for word in _read_tokens(tokens, label, given, findings):
        findings.append(Finding(label, f"{word!r} is not an option", "options begin with --; a value with spaces needs quotes"))
    for option in OPTIONS:
        if option.per_step and option.key in given:
            findings.append(Finding(label, f"{option.name} belongs to one step", f"write {option.name} in the cell of that step"))
    if findings:
        raise DefinitionError(*findings)
    return given


def merge(defaults: Given, own: Given) -> Given:
    """A step's own options over the defaults of the flow. --files add up; of --env the own value of a variable counts."""
    contrary = {"no-cache"} if {"cache-for", "cache-key"} & own.keys() else {"cache-for"} if "no-cache" in own else set()
    merged = {**{key: value for key, value in defaults.items() if key not in contrary}, **own}
    if "files" in defaults and "files" in own:
        merged["files"] = tuple(dict.fromkeys((*defaults["files"], *own["files"])))
    if "env" in defaults and "env" in own:
        merged["env"] = tuple({**dict(defaults["env"]), **dict(own["env"])}.items())
    if "card" not in merged and "refresh-interval" not in own:
        merged.pop("refresh-interval", None)
    return merged


def make_options(given: Given, *, label: str = "") -> Options:
    """The options as a value. Raises DefinitionError, placed at `label`, when some do not go together."""
    if "min-ok" in given and "foreach" not in given:
        raise DefinitionError(
            Finding(label, "--min-ok needs --foreach: without it there is one task", "remove --min-ok, or use --catch VAR")
        )
    if "no-cache" in given and (other := next((key for key in ("cache-for", "cache-key") if key in given), None)):
        raise DefinitionError(
            Finding(label, f"--no-cache and --{other} contradict each other", "keep one of them: --no-cache always runs the step")
        )
    if "refresh-interval" in given and "card" not in given:
        raise DefinitionError(Finding(label, "--refresh-interval is of a card, and the step has none", "add --card, or --card blank"))
    restrict, added = given.get("out", (None, ()))
    standard = Options()
    return Options(
        after=given.get("after", ()),
        join=given.get("join", ()),
        foreach=given.get("foreach"),
        when=given.get("when"),
        always=given.get("always", False),
        out=restrict,
        out_add=added,
        files=given.get("files", ()),
        retry=_retry(given),
        timeout_s=given.get("timeout"),
        catch=given.get("catch"),
        min_ok=given.get("min-ok"),
        resources=Resources(given.get("cpu", standard.resources.cpu), given.get("memory"), given.get("gpu", 0), given.get("disk")),
        env=given.get("env", ()),
        flow=given.get("flow"),
        run=given.get("run", False),
        no_cache=given.get("no-cache", False),
        cache_for_s=given.get("cache-for"),
        cache_key=given.get("cache-key"),
        cards=tuple(
            Card(kind, refresh_interval_s=given.get("refresh-interval", Card.refresh_interval_s)) for kind in given.get("card", ())
        ),
        checkpoint=Checkpoint() if given.get("checkpoint") else None,
        secrets=given.get("secret", ()),
        image=given.get("image"),
        pip=tuple(word for text in given.get("pip", ()) for word in text.split()),
        spot=given.get("spot", False),
    )


def _retry(given: Given) -> Retry:
    standard = Retry()
    return Retry(
        given.get("retry", standard.times),
        given.get("minutes-between-retries", standard.minutes_between_retries),
        backoff=given.get("backoff", standard.backoff),
        jitter=given.get("jitter", standard.jitter),
        only=given.get("retry-only", ()),
        unless=given.get("retry-unless", ()),
    )


def _read_tokens(tokens: Sequence[str], where: str, given: dict[str, Any], findings: list[Finding]) -> list[str]:
    """Reads one line's words into `given`; returns those that are no options."""
    words: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token == "-":
            words.append(token)
            continue
        name, equals, value = token.partition("=")
        option = _BY_NAME.get(name)
        if option is None:
            findings.append(_unknown(name, where))
            while rest and not rest[0].startswith("-") and not equals:
                rest.pop(0)  # its values, whatever it is
            continue
        if option.alone is not None and not equals and (not rest or rest[0].startswith("-")):
            value = option.alone
        elif option.metavar and not equals:
            if not rest or rest[0].startswith("--"):
                findings.append(Finding(where, f"{name} needs a value", f"{name} {option.metavar}: {option.help}"))
                continue
            value = rest.pop(0)
        elif equals and not option.metavar:
            findings.append(Finding(where, f"{name} takes no value", f"{name}: {option.help}"))
            continue
        try:
            _keep(option, option.parse(value), where, given, findings)
        except Refused as refused:
            hidden = "=" if option.key == "env" else ":" if option.key == "secret" and value.startswith("inline:") else None
            shown = f"{name} {value.partition(hidden)[0]}" if hidden else f"{name} {value}"
            findings.append(Finding(where, f"{shown}: {refused.what}", refused.remedy))
    return words


def _keep(option: Option, value: Any, where: str, given: dict[str, Any], findings: list[Finding]) -> None:
    if option.key == "env":
        given["env"] = tuple({**dict(given.get("env", ())), **dict([value])}.items())
    elif option.repeatable:
        given[option.key] = tuple(dict.fromkeys((*given.get(option.key, ()), value)))
    elif given.get(option.key, value) != value:
        findings.append(Finding(where, f"{option.name} is given twice, with different values", "keep one of them"))
    else:
        given[option.key] = value


def _unknown(name: str, where: str) -> Finding:
    known = list(_BY_NAME)
    near = difflib.get_close_matches(name if name.startswith("--") else f"-{name}", known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return Finding(where, f"unknown option {name}{hint}", f"options: {', '.join(known)}")


def _check_names(names: Sequence[str], given: Given, label: str) -> list[Finding]:
    if not names and "card" in given:
        return [Finding(label, "the step has no name", "write the name first: %%flowstep train --card")]
    if not names:
        return [Finding(label, "the step has no name", "write %%flowstep NAME, for instance: %%flowstep train")]
    if len(names) > 1:
        unquoted = names[1] == "in" or "foreach" in given or "when" in given
        remedy = 'a value with spaces needs quotes: --foreach "x in xs", --when "score > 0.9"'
        return [
            Finding(label, f"unexpected {names[1]!r} after the name {names[0]!r}", remedy if unquoted else f"a step has one name; {remedy}")
        ]
    what = _wrong_step_name(names[0])
    return [Finding(label, what, "use letters, digits and _, beginning with a letter (at most 64), for instance: train")] if what else []


def _wrong_step_name(name: str) -> str:
    if keyword.iskeyword(name):
        return f"a step cannot be named {name!r}: it is a keyword of Python"
    if name in RESERVED_STEPS:
        return f"a step cannot be named {name!r}: flowbook binds that name itself"
    if not layout.NAME.match(name) or name.startswith("_"):
        return f"{name!r} is not a step's name"
    return ""
