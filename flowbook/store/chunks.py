"""The checkpoints of one task in the store: small manifests, and the pieces they are made of. Knows nothing of loops or processes.

    TASK/checkpoints/000007.json    created if absent, never changed: the MANIFEST of docs/internals.md
    TASK/checkpoints/K/HASH         pieces of what attempt K saved, by content

There is no "latest": the newest manifest whose pieces are all there and are what their names say wins, so that a killed or a
damaged save costs no more than itself. A buffer is cut from its own start, so a large array that did not change is made of the
pieces that are there already. Pieces belong to their task and go as soon as no manifest that is kept names them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowbook.errors import ArtifactError, StoreError, StoreMissing
from flowbook.store import layout, trust
from flowbook.store.base import Buffer, Store

Json = Any
Manifest = dict[str, Json]

CHUNK_BYTES = 4 << 20
SMALL_BYTES = 256 << 10  # parts below this are put together, up to PACK_BYTES
PACK_BYTES = 1 << 20
INLINE_BYTES = 64 << 10  # so small a state stands in the manifest itself
KEEP = 2  # of each kind; those with a name of the user's own are all kept
OWN_NAME = "mfchckpt"  # the name of a checkpoint that was given none
VERSION = 1


class DamagedCheckpoint(ArtifactError):
    """A manifest or a piece of a checkpoint is gone, or is not what was written."""


def cut(parts: Iterable[Buffer]) -> Iterator[bytes | memoryview]:
    """The parts as pieces: large ones cut every CHUNK_BYTES from their own start, small ones put together.

    >>> [len(piece) for piece in cut([b"a" * 10, bytes(5 << 20), b"b"])]
    [10, 4194304, 1048576, 1]
    """
    small: list[Buffer] = []
    waiting = 0
    for part in parts:
        view = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
        if view.nbytes < SMALL_BYTES:
            small.append(view)
            waiting += view.nbytes
            if waiting < PACK_BYTES:
                continue
        if waiting:
            yield b"".join(small)
            small, waiting = [], 0
        if view.nbytes >= SMALL_BYTES:
            yield from (view[start : start + CHUNK_BYTES] for start in range(0, view.nbytes, CHUNK_BYTES))
    if waiting:
        yield b"".join(small)


@dataclass(frozen=True)
class Shelf:
    """The checkpoints of one task. Methods raise StoreError; those that read also DamagedCheckpoint."""

    store: Store
    flow: str
    run: str
    step: str
    index: layout.Index

    # ---- writing ----

    def write_body(self, parts: Sequence[Buffer], attempt: int) -> dict[str, Json]:
        """Save the bytes of an encoded value; gives BODY, where they are. What is there already is not written again."""
        size = sum(memoryview(part).nbytes for part in parts)
        if size <= INLINE_BYTES:
            data = b"".join(parts)
            return {"size": size, "inline": base64.b64encode(data).decode(), "sha256": hashlib.sha256(data).hexdigest()}
        return {"size": size, "run": self.run, "attempt": attempt, "chunks": self.write_pieces(cut(parts), attempt)}

    def write_pieces(self, pieces: Iterable[bytes | memoryview], attempt: int) -> list[list[Json]]:
        """[[address, size], …]"""
        found = []
        for piece in pieces:
            address = hashlib.sha256(piece).hexdigest()
            self.store.create(self._chunk(self.run, attempt, address), piece)
            found.append([address, len(piece)])
        return found

    def create(self, manifest: Mapping[str, Json], attempt: int, *, after: int | None = None) -> Manifest:
        """Create the manifest under the next free number, and give it as it stands there. `after`: the highest number, if it is known."""
        number = max(self.numbers(), default=0) if after is None else after
        while True:
            number += 1
            whole = {"v": VERSION, "number": number, "attempt": attempt, "made_at": round(time.time(), 3), **manifest}
            whole["check"] = _check(whole)
            key = layout.checkpoint(self.flow, self.run, self.step, self.index, number)
            if self.store.create(key, trust.sign(self.store, key, whole)):
                return whole

    # ---- reading ----

    def numbers(self) -> list[int]:
        """Of the manifests that are there, in rising order."""
        names = self.store.names(layout.checkpoint_prefix(self.flow, self.run, self.step, self.index).rstrip("/"))
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def manifest(self, number: int) -> Manifest:
        key = layout.checkpoint(self.flow, self.run, self.step, self.index, number)
        try:
            found = trust.read(self.store, key, self.store.get(key))
        except StoreMissing:
            raise DamagedCheckpoint(f"{key} is gone") from None
        except ValueError:
            raise DamagedCheckpoint(f"{key} is not JSON") from None
        if not isinstance(found, dict) or found.get("check") != _check(found):
            raise DamagedCheckpoint(f"{key} is not what was written")
        if not trust.holds(self.store, found):  # what it leads to is unpickled
            raise DamagedCheckpoint(f"{key} was not written with this project's key ({trust.VARIABLE})")
        if found.get("v") != VERSION:
            raise DamagedCheckpoint(f"{key} was written by a later flowbook")
        return found

    def manifests(self) -> tuple[list[Manifest], list[str]]:
        """Those that can be read, newest first, and what is wrong with the others. A later attempt counts as newer."""
        found, troubles = [], []
        for number in self.numbers():
            try:
                found.append(self.manifest(number))
            except DamagedCheckpoint as error:
                troubles.append(str(error))
        return sorted(found, key=lambda each: (each["attempt"], each["number"]), reverse=True), troubles

    def body(self, body: Mapping[str, Json]) -> bytearray:
        """The bytes of BODY, verified."""
        if "inline" in body:
            try:
                data = bytearray(base64.b64decode(body["inline"], validate=True))
            except (ValueError, TypeError, binascii.Error):
                raise DamagedCheckpoint("its data is not base64") from None
            if hashlib.sha256(data).hexdigest() != body.get("sha256"):
                raise DamagedCheckpoint("its data is not what was written")
            return data
        whole = bytearray(body["size"])
        view, place = memoryview(whole), 0
        for piece in self.pieces(body):
            view[place : place + len(piece)] = piece
            place += len(piece)
        if place != body["size"]:
            raise DamagedCheckpoint(f"{place} bytes of {body['size']} are there")
        return whole

    def pieces(self, body: Mapping[str, Json]) -> Iterator[bytes]:
        """The pieces of BODY one by one, each verified."""
        for address, size in body["chunks"]:
            key = self._chunk(body.get("run", self.run), body["attempt"], address)
            try:
                piece = self.store.get(key)
            except StoreMissing:
                raise DamagedCheckpoint(f"{key} is gone") from None
            if len(piece) != size or hashlib.sha256(piece).hexdigest() != address:
                raise DamagedCheckpoint(f"{key} is not what was written")
            yield piece

    # ---- keeping ----

    def retire(self, *, sweep: int | None = None, known: list[Manifest] | None = None) -> list[Manifest]:
        """Remove manifests that are no longer kept, and pieces that none of the others names. Gives those that are kept.

        `sweep`: look for pieces of saves that were killed, too, of attempts up to this one. `known`: all manifests that there are,
        newest first, if that is known. Only one process of an attempt may do this, and not while it writes.
        """
        found = self.manifests()[0] if known is None else known
        kept = list(_kept(found))
        numbers = {manifest["number"] for manifest in kept}
        gone = [manifest for manifest in found if manifest["number"] not in numbers]
        if not gone and sweep is None:
            return kept
        for manifest in gone:
            self.store.delete(layout.checkpoint(self.flow, self.run, self.step, self.index, manifest["number"]))
        needed = {key for manifest in kept for key in self._keys(manifest)}
        unneeded = {key for manifest in gone for key in self._keys(manifest)}
        if sweep is not None:
            prefix = layout.checkpoint_prefix(self.flow, self.run, self.step, self.index)
            pieces = (key for key in self.store.list(prefix) if not key.endswith(".json"))
            unneeded |= {key for key in pieces if int(key[len(prefix) :].partition("/")[0]) <= sweep}
        for key in unneeded - needed:
            if key.startswith(layout.run_prefix(self.flow, self.run)):  # those of a resumed run are that run's
                self.store.delete(key)
        return kept

    def _keys(self, manifest: Manifest) -> Iterator[str]:
        for body in bodies(manifest):
            for address, _ in body.get("chunks", ()):
                yield self._chunk(body.get("run", self.run), body["attempt"], address)

    def _chunk(self, run: str, attempt: int, address: str) -> str:
        return layout.checkpoint_chunk(self.flow, run, self.step, self.index, attempt, address)


def bodies(manifest: Manifest) -> Iterator[Mapping[str, Json]]:
    """Every BODY that a manifest names."""
    for record in manifest.get("loops", ()):
        yield record["body"]
    if "state" in manifest:
        yield manifest["state"]
    for file in manifest.get("files", ()):
        if "body" in file:
            yield file["body"]


def _kept(found: list[Manifest]) -> Iterator[Manifest]:
    """Those to keep, of manifests that are newest first."""
    counts: dict[tuple[Json, ...], int] = {}
    for manifest in found:
        name = manifest.get("name")
        group = (manifest["kind"], manifest.get("latest", True))
        counts[group] = counts.get(group, 0) + 1
        if name not in (None, OWN_NAME) or counts[group] <= KEEP:
            yield manifest


def _check(manifest: Mapping[str, Json]) -> str:
    text = json.dumps({name: value for name, value in manifest.items() if name not in ("check", "sig")}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass
class Found:
    """A checkpoint that was looked for: the newest that is whole, where it stands, and what was passed over on the way."""

    shelf: Shelf | None = None
    manifest: Manifest | None = None
    data: dict[str, bytearray] = field(default_factory=dict)  # part ("state", "loop 0") → its bytes
    troubles: list[str] = field(default_factory=list)


def find(shelf: Shelf, kinds: tuple[str, ...]) -> Found:
    """The newest checkpoint of these kinds whose pieces all verify, read whole.

    While it is read, another process of the task may retire it: then a newer one is there, and is taken. Raises StoreError.
    """
    result = Found()
    while True:
        newest = max(shelf.numbers(), default=0)
        found, result.troubles = shelf.manifests()
        wanted = [each for each in found if each["kind"] in kinds and each.get("latest", True)]
        for manifest in wanted:
            try:
                return Found(shelf, manifest, read(shelf, manifest), result.troubles)
            except DamagedCheckpoint as error:
                result.troubles.append(f"checkpoint {manifest['number']}: {error}")
        if max(shelf.numbers(), default=0) <= newest:
            return result


def read(shelf: Shelf, manifest: Manifest) -> dict[str, bytearray]:
    """All values of a manifest as bytes; files are only verified. Raises DamagedCheckpoint."""
    data = {f"loop {record['loop']}": shelf.body(record["body"]) for record in manifest.get("loops", ())}
    if "state" in manifest:
        data["state"] = shelf.body(manifest["state"])
    for file in manifest.get("files", ()):
        for _ in shelf.pieces(file["body"]) if "chunks" in file.get("body", ()) else ():
            pass
    return data


__all__ = ["DamagedCheckpoint", "Found", "Manifest", "Shelf", "StoreError", "bodies", "cut", "find", "read"]
