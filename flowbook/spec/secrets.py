"""Where the secret variables of a step come from: `@secrets(sources=[…])` and `--secret`, as values. Never a secret itself.

Pure parsing. A run keeps each source as a line of JSON (`Options.secrets`); worker/secrets.py fetches what it names, in the
process of the attempt. The one exception is "inline", which is for trying things out: its values stand in the text of the flow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowbook.spec.flow import Json

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
HOW = 'write "NAME", "env:NAME=TARGET", "file:PATH", "NAME=file:PATH", "kubernetes:NAME" in a cluster, or "TYPE:ID" of a secret manager'
DNS = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")  # of objects of Kubernetes

IN_POD = "FLOWBOOK_POD_SECRETS"
"""The variable by which a pod tells its worker which Secrets of the cluster it was given, by name. The keys of the first are variables
that begin with `carried(0)`, and so on: only the worker, which looks at all sources, sets them under their own names."""


class WrongSource(ValueError):
    """A source that cannot be read; the message never repeats what follows "inline:"."""


@dataclass(frozen=True)
class Secret:
    """One source.

    `kind` "env": `place` is a variable of the environment, set as `target`. "file": `place` is a path; with a `target` the whole
    text is that variable, else the file lists variables. "inline": `options` are the variables. "kubernetes": `place` is a Secret in the
    namespace of the step's pod, whose keys are the variables. Any other kind is a secret manager that an entry point of the group `flowbook.secrets` offers; `place` is its id of the secret, `options` are passed on.
    """

    kind: str
    place: str = ""
    target: str = ""
    role: str | None = None
    allow_override: bool = False
    options: Mapping[str, Json] = field(default_factory=dict, repr=False, hash=False)

    def to_text(self) -> str:
        """The form of `Options.secrets`: JSON in one line, without what is empty."""
        return json.dumps({key: value for key, value in vars(self).items() if value}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Secret:
        return cls(**json.loads(text))

    @property
    def name(self) -> str:
        """As people know it: ``env:NAME``, ``file:PATH``; of "inline" no more than that."""
        return f"{self.kind}:{self.place}" if self.place else self.kind

    @property
    def written(self) -> str:
        """As `parse_source` reads it, of a source that was given as text."""
        if self.kind == "file" and self.target:
            return f"{self.target}=file:{self.place}"
        return f"{self.name}={self.target}" if self.target not in ("", self.place) else self.name


def parse_source(source: Any, role: str | None = None, allow_override: bool = False) -> Secret:
    """A source as written: text, or Metaflow's dict with "type", "id", "role", "options". Raises WrongSource."""
    if isinstance(source, str):
        kind, place, target, options = _of_text(source)
    elif isinstance(source, Mapping):
        kind, place, target, options = _of_mapping(source)
        role = source.get("role") or role
    else:
        raise WrongSource(f"a source is a text or a dict, not {type(source).__name__}")
    if kind == "env" and not (VARIABLE.match(place) and VARIABLE.match(target)):
        raise WrongSource(f"{place!r} is not a variable's name" if not VARIABLE.match(place) else f"{target!r} is not a variable's name")
    if kind == "file" and (not place or "\0" in place):
        raise WrongSource("a path is missing after file:")
    if kind == "inline" and not all(isinstance(n, str) and VARIABLE.match(n) and isinstance(v, str) for n, v in options.items()):
        raise WrongSource("the variables of an inline source must be texts by names")
    if kind == "kubernetes" and not DNS.match(place):
        raise WrongSource(f"{place!r} is no name of a Secret in Kubernetes, which has lower-case letters, digits, '-' and '.'")
    if kind == "kubernetes" and options:
        raise WrongSource("a Secret of the cluster takes no options: all its keys become variables")
    return Secret(kind, place, target, role, allow_override, options)


def of_cluster(sources: Iterable[str]) -> tuple[str, ...]:
    """The Secrets of a cluster among sources (texts of `Options.secrets`): each name once, in their order."""
    found = map(Secret.from_text, sources)
    return tuple(dict.fromkeys(each.place for each in found if each.kind == "kubernetes"))


def carried(number: int) -> str:
    """How the variables begin that carry a Secret of the cluster into the pod; see IN_POD."""
    return f"FLOWBOOK_SECRET_{number + 1}_"


def _of_text(text: str) -> tuple[str, str, str, Mapping[str, Json]]:
    name, equals, rest = text.partition("=file:")
    if equals and VARIABLE.match(name):
        return "file", rest, name, {}
    if text.startswith("inline:"):
        return "inline", "", "", _inline(text[len("inline:") :])
    if VARIABLE.match(text):
        return "env", text, text, {}
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9_-]*)[:.](.+)", text, re.DOTALL)
    if found is None:
        raise WrongSource("not a source of secrets")
    kind, place = found[1], found[2]
    if kind == "env":
        variable, _, target = place.partition("=")
        return kind, variable, target or variable, {}
    return kind, place, "", {}


def _inline(text: str) -> Mapping[str, Json]:
    try:
        found = json.loads(text)
    except ValueError:
        raise WrongSource("what follows inline: is not JSON") from None
    if not isinstance(found, dict):
        raise WrongSource("what follows inline: is not a JSON object")
    return found


def _of_mapping(source: Mapping[Any, Any]) -> tuple[str, str, str, Mapping[str, Json]]:
    unknown = [repr(key) for key in source if key not in ("type", "id", "role", "options")]
    kind, place, options = source.get("type"), source.get("id") or "", source.get("options") or {}
    if unknown:
        raise WrongSource(f"{', '.join(unknown)} is not known of a source; type, id, role, options are")
    if not isinstance(kind, str) or not kind:
        raise WrongSource('a source written as a dict needs "type"')
    if not isinstance(place, str) or not isinstance(options, Mapping):
        raise WrongSource('"id" of a source is a text, "options" a dict')
    if kind == "inline":
        variables = options.get("env_vars", {})
        if not isinstance(variables, Mapping):
            raise WrongSource('"env_vars" of an inline source is a dict')
        return kind, "", "", dict(variables)
    try:
        json.dumps(options)
    except (TypeError, ValueError):
        raise WrongSource('"options" of a source must be JSON') from None
    return kind, place, place if kind == "env" else "", dict(options)
