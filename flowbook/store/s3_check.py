"""What `%flow doctor` asks of a bucket: who asks, whether the bucket is there, each right below the prefix, encryption.

Each answer is (state, text, remedy), as doctor.py shows them. Nothing is left behind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from flowbook.errors import StoreError
from flowbook.store import layout
from flowbook.store.s3 import S3Store

Told = tuple[str, str, str]


def check(store: S3Store) -> Iterator[Told]:
    """Stops at what makes the rest pointless."""
    one = {"list-type": "2", "max-keys": "1", "prefix": store.prefix}  # an answer to HEAD would have no words
    try:
        store.client.credentials.get()
        answer = store.client.send("GET", query=one, fine=(403,))
        if answer.status == 403 and answer.code != "AccessDenied":
            store.client.send("GET", query=one)
    except StoreError as error:
        yield "bad", str(error), ""
        return
    yield "ok", f"credentials of {store.client.credentials.kind}", ""
    bucket = store.client.bucket
    if answer.status == 200:
        yield "ok", f"bucket {bucket.name} at {bucket.host}, region {bucket.region}", ""
    yield from _rights(store)


def _rights(store: S3Store) -> Iterator[Told]:
    folder = layout.probe(f"{os.getpid()}-{os.urandom(8).hex()}", 0).rpartition("/")[0]
    key = f"{folder}/0"
    acts: dict[str, Callable[[], object]] = {
        "write": lambda: store.create(key, b"probe"),
        "read": lambda: store.get(key),
        "list": lambda: list(store.names(folder)),
        "upload in parts": lambda: store._abort(store._path(key), store._begin(store._path(key), store._encrypted)),
    }
    able, told = [], ""
    for name, act in acts.items():
        if name == "read" and "write" not in able:
            continue  # there is nothing to read
        try:
            act()
            able.append(name)
        except StoreError as error:
            told = str(error)
            yield "bad", told, ""
    encrypted = "x-amz-server-side-encryption"
    try:
        found = store._head(key) if "write" in able else None
        if found is not None:
            yield from _encryption(store, found.headers.get(encrypted, ""))
        store.delete(key)
        able.append("remove")
    except StoreError as error:
        if str(error) != told:
            yield "bad", str(error), ""
    if able:
        yield "ok", f"rights below {store.where}: {', '.join(able)}", ""


def _encryption(store: S3Store, found: str) -> Iterator[Told]:
    wanted = store._encrypted.get("x-amz-server-side-encryption", "")
    if wanted and found != wanted:
        has = f"is encrypted by {found}" if found else "is not encrypted"
        yield "bad", f"s3_encryption asks for {wanted}, but what is written {has}", "This server may not know it: ask who runs it."
    else:
        yield "ok", f"objects are encrypted by the server ({found})" if found else "the server says nothing of encryption", ""
