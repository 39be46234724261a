"""Sets the secret variables of a step in the environment of its attempt, just before the body.

The values go nowhere else: not into the store, not into a message, not into what is printed. A run keeps only where they are
(spec/secrets.py). All sources are read before anything is set, so a step never runs with half of them. Sources of secret managers
are functions of other packages: an entry point of the group `flowbook.secrets`, named as the type of the source, is called with the
id of the secret and the role, and gives variables by name:

    def fetch(source: str, role: str | None, **options) -> dict[str, str]: ...
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from flowbook.errors import FlowbookError
from flowbook.spec.secrets import IN_POD, VARIABLE, Secret, carried

GROUP = "flowbook.secrets"
OWN = ("env", "file", "inline", "kubernetes")  # types of source that need no package
LARGEST_FILE = 2**20  # bytes; a file of secrets is small

Fetch = Callable[..., Mapping[str, Any]]


class SecretError(FlowbookError):
    """A secret that a step asks for is not there, or may not be set. Says which source and what to do, never a value."""


def set_secrets(sources: Iterable[str], environ: MutableMapping[str, str]) -> None:
    """Set what the sources (texts of `Options.secrets`) give. Raises SecretError, and then nothing is set."""
    found: dict[str, str] = {}
    givers: dict[str, str] = {}
    for secret in map(Secret.from_text, sources):
        for name, value in _read(secret, environ).items():
            if name in found and found[name] != value:
                raise SecretError(f"{givers[name]} and {secret.name} both give {name}, with different values\n    keep one of them")
            if environ.get(name, value) != value and not secret.allow_override:
                remedy = "remove it from the environment, or write @secrets(sources=[…], allow_override=True)"
                raise SecretError(f"{secret.name} gives {name}, which the environment has with another value\n    {remedy}")
            found[name], givers[name] = value, secret.name
    carriers = tuple(carried(number) for number, _ in enumerate(environ.get(IN_POD, "").split()))
    for name in [each for each in environ if each == IN_POD or each.startswith(carriers)]:
        del environ[name]
    environ.update(found)


def _read(secret: Secret, environ: Mapping[str, str]) -> dict[str, str]:
    if secret.kind == "env":
        if secret.place not in environ:
            remedy = (
                f"set it where the run is started (export {secret.place}=…), or name another source; for a pod of a cluster kubernetes:NAME"
            )
            raise SecretError(f"the secret {secret.name} is not set in the environment\n    {remedy}")
        return {secret.target: environ[secret.place]}
    if secret.kind == "file":
        return _of_file(secret)
    if secret.kind == "kubernetes":
        return _of_cluster(secret, environ)
    given = dict(secret.options) if secret.kind == "inline" else _fetched(secret)
    return _checked(secret, given)


def _checked(secret: Secret, given: Mapping[Any, Any]) -> dict[str, str]:
    for name, value in given.items():
        if not isinstance(name, str) or not VARIABLE.match(name):
            raise SecretError(
                f"{secret.name} gives a name that no variable can have\n    use letters, digits and _, beginning with a letter"
            )
        if not isinstance(value, str) or "\0" in value:
            raise SecretError(f"{secret.name} gives a value of {name} that no variable can have\n    it must be a text")
    return dict(given)


def _of_cluster(secret: Secret, environ: Mapping[str, str]) -> dict[str, str]:
    names = environ.get(IN_POD, "").split()
    if secret.place not in names:
        remedy = "run it with --with kubernetes, or name a source that is here: env:NAME, file:PATH"
        raise SecretError(f"{secret.name} is a Secret of a cluster, and this step runs on this machine\n    {remedy}")
    start = carried(names.index(secret.place))
    found = {name.removeprefix(start): value for name, value in environ.items() if name.startswith(start)}
    for key in found:
        if not VARIABLE.match(key):
            remedy = (
                "rename it in the Secret (letters, digits and _, beginning with a letter), or mount the Secret: @kubernetes(volumes={…})"
            )
            raise SecretError(f"{secret.name} has the key {key!r}, which is no name of a variable\n    {remedy}")
    return found


# ---- files --------------------------------------------------------------------------------------------------------------------


def _of_file(secret: Secret) -> dict[str, str]:
    text = _text(secret)
    if secret.target:
        return _checked(secret, {secret.target: text.removesuffix("\n").removesuffix("\r")})
    if text.lstrip().startswith("{"):
        return _checked(secret, _of_json(secret, text))
    return _checked(secret, _of_lines(secret, text))


def _text(secret: Secret) -> str:
    path = Path(secret.place)
    try:
        path = path.expanduser()
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise SecretError(
                f"the secret {secret.name} is too large\n    at most {LARGEST_FILE // 2**20} MB; large files are data: --files, or IncludeFile"
            )
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SecretError(f"the secret {secret.name} is no text in UTF-8\n    write it anew as text") from None
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SecretError(
            f"the secret {secret.name} cannot be read: {reason} ({path.absolute()})\n    write the path of a file that this machine has"
        ) from None


def _of_json(secret: Secret, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise SecretError(f"the secret {secret.name} is no JSON, in line {line}\n    {_HOW}") from None
    return {name: str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value for name, value in found.items()}


def _of_lines(secret: Secret, text: str) -> dict[str, str]:
    """``NAME=value`` per line, quoted as a shell would; ``export`` before it, blank lines and comments are fine."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = ["", ""]
        if words[:1] == ["export"]:
            words = words[1:]
        if not words:
            continue
        name, equals, value = words[0].partition("=")
        if len(words) != 1 or not equals or not VARIABLE.match(name):
            raise SecretError(f"the secret {secret.name} cannot be read, in line {number}\n    {_HOW}")
        found[name] = value
    return found


_HOW = 'write NAME=value in each line, with quotes around spaces, or a JSON object; "NAME=file:PATH" takes the whole text as one variable'


# ---- secret managers -------------------------------------------------------------------------------------------------------------


def _fetched(secret: Secret) -> Mapping[Any, Any]:
    fetch = _manager(secret)
    try:
        given = fetch(secret.place, secret.role, **secret.options)
    except Exception as error:
        # The text of the error may hold the secret, its class does not.
        what = f"the secret {secret.name} could not be fetched: {type(error).__name__}"
        raise SecretError(
            f"{what}\n    check the name, the role{f' {secret.role}' if secret.role else ''} and the rights of this machine"
        ) from None
    if not isinstance(given, Mapping):
        raise SecretError(
            f"the secret {secret.name} came as {type(given).__name__}\n    the entry point of {GROUP} must give a dict of texts by name"
        )
    return given


def _manager(secret: Secret) -> Fetch:
    offered = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if secret.kind not in offered:
        near = difflib.get_close_matches(secret.kind, [*offered, *OWN], 1)
        hint = f"did you mean {near[0]}? Else install" if near else "install"
        known = ", ".join([*OWN, *sorted(offered)])
        remedy = f"{hint} a package with an entry point {secret.kind} in the group {GROUP}; there are: {known}"
        raise SecretError(f"no secret manager {secret.kind} is installed here ({secret.name})\n    {remedy}")
    try:
        fetch: Fetch = offered[secret.kind].load()
    except Exception as error:
        raise SecretError(
            f"the secret manager {secret.kind} cannot be loaded: {type(error).__name__}: {error}\n    install what {offered[secret.kind].value} needs"
        ) from None
    return fetch
