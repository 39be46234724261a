"""Who made a result: whoever can write into a bucket is not thereby trusted to run code in the kernels that read it.

A value is unpickled only if the document that names it (a COMMIT, the spec of a run, the log, a checkpoint) was signed with the
project's key, an HMAC over the object's key and its content; and what a document names is content, whose hash is checked when it is
read. So a chain leads from the key to every byte that is unpickled. The rest of a document is shown as it is: previews are text.

    {"v": 1, …, "sig": "64 hex digits"}         the signature is over KEY, a zero byte, and the document without it

`read` gives a signed document as `Signed` dicts all the way down, so that every entry taken out of it carries the proof; codec.py,
the one place that unpickles, refuses an entry without it. What lost the proof on its way is refused too, never let through.
A store on files has no key: its folder is its user's alone.
"""

from __future__ import annotations

import functools
import hmac
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowbook.errors import ArtifactError, StoreError
from flowbook.store import layout
from flowbook.store.base import Store

Json = Any
VARIABLE = "FLOWBOOK_PROJECT_KEY"
LEAST = 16  # characters of a key
_MARK = b',"sig":"'
_LENGTH = len(_MARK) + 64 + 2


class Signed(dict[str, Json]):
    """An object out of a signed document, or one that this process made."""


def sign(store: Store, key: str, document: Mapping[str, Json]) -> bytes:
    """The document as it is written to `key`. A signature that it carries is not kept."""
    data = {name: value for name, value in document.items() if name != "sig"}
    return sign_text(store, key, json.dumps(data, separators=(",", ":")).encode())


def sign_text(store: Store, key: str, text: bytes) -> bytes:
    """The same for a JSON object that is written already, with at least one member."""
    if store.key_file is None:
        return text
    return text[:-1] + _MARK + _sum(project_key(store, make=True), key, text).encode() + b'"}'


def is_right(store: Store, key: str, data: bytes) -> bool:
    """Whether what stands at `key` was signed with the project's key; True in a store that needs none."""
    if store.key_file is None:
        return True
    secret, start = project_key(store), len(data) - _LENGTH
    if not secret or start <= 0 or data[start : start + len(_MARK)] != _MARK or data[-2:] != b'"}':
        return False
    return hmac.compare_digest(_sum(secret, key, data[:start] + b"}").encode(), data[start + len(_MARK) : -2])


def read(store: Store, key: str, data: bytes) -> Json:
    """The document: of `Signed` dicts if its signature is right, else of plain ones. Raises ValueError if it is not JSON."""
    return json.loads(data, object_hook=Signed if is_right(store, key, data) else None)


def spec(store: Store, flow: str, run: str) -> Json:
    """`run.json` of a run whose code is about to run. Raises StoreError if it is not signed, ValueError if it is not JSON."""
    key = layout.spec(flow, run)
    found = read(store, key, store.get(key))
    if not holds(store, found):
        raise StoreError(f"run {run} of {flow} is not run: {key} in {store.where} was not written with this project's key ({VARIABLE}).")
    return found


def holds(store: Store, document: Mapping[str, Json]) -> bool:
    """Whether values that a document, or an entry of one, names may be unpickled."""
    return store.key_file is None or isinstance(document, Signed)


def refusal(store: Store, name: str) -> ArtifactError:
    """What is said of a value that is not unpickled."""
    place = f"{VARIABLE}, or the file {store.key_file}" if store.key_file else VARIABLE
    known = (
        "was not written with this project's key" if project_key(store) else "cannot be told to be yours: this process has no project key"
    )
    return ArtifactError(
        f"{name} is not loaded: its result in {store.where} {known}, and loading it could run anybody's code. "
        f"If a colleague made it, share the key: {place}. Else run its step again."
    )


def project_key(store: Store, *, make: bool = False) -> bytes:
    """The key, from the environment or the user's file; b"" if there is none, unless `make`. Raises StoreError for one that cannot be used."""
    assert store.key_file is not None
    given = os.environ.get(VARIABLE)
    if given:
        if len(given) < LEAST:
            raise StoreError(f"{VARIABLE} is too short for a key: {LEAST} characters or more. A colleague's keys/PROJECT.key holds one.")
        return given.encode()
    found = _of_file(store.key_file)
    if not found and make:
        if not store.key_file:
            raise StoreError(f"results in {store.where} have to be signed, and this process has no project key: set {VARIABLE}.")
        _make(Path(store.key_file))
        found = _of_file(store.key_file)
    return found


def _of_file(path: str) -> bytes:
    try:
        return _content(path, os.stat(path).st_mtime_ns)  # noqa: PTH116 (once for every document)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise StoreError(f"the project's key {path} cannot be read: {error.strerror}. It must belong to you, with mode 0600.") from error


@functools.lru_cache(8)
def _content(path: str, _changed_at: int) -> bytes:
    found = Path(path)
    if found.stat().st_mode & 0o077:
        raise StoreError(
            f"the project's key {path} can be read by others. `chmod 600 {path}`, and make a new one if others should not have it."
        )
    key = found.read_bytes().strip()
    if len(key) < LEAST:
        raise StoreError(
            f"the project's key {path} is damaged. Restore it, or remove it: a new one is made, and old results are then only shown."
        )
    return key


def _make(path: Path) -> None:
    """A new key. Of processes that do this at once, one makes it and all use it."""
    temp = path.with_name(f".{path.name}-{os.urandom(6).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(os.urandom(32).hex() + "\n")
        os.link(temp, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreError(
            f"the project's key {path} cannot be made: {error.strerror}. Make its folder writable, or set {VARIABLE}."
        ) from error
    finally:
        temp.unlink(missing_ok=True)


def _sum(secret: bytes, key: str, text: bytes) -> str:
    return hmac.new(secret, key.encode() + b"\0" + text, "sha256").hexdigest()
