"""The S3 store: an object a key of a bucket, below a prefix.

`create` is one PUT with ``If-None-Match: *``. Each carries a mark of its own, so that a create whose answer was lost asks, when it
is then told that the key exists, whether the object is its own. Large data goes as a multipart upload, whose completion carries the
condition: parts are sent from the memory where they are, several at a time, and nothing is joined. Large blobs are read in ranges,
several at a time, straight into a file of this machine (s3_cache.py), checked against their address and mapped.

Everything that is sent goes through s3_client.py, which alone repeats.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from flowbook._version import __version__
from flowbook.errors import ArtifactError, StoreError, StoreMissing
from flowbook.store import layout, s3_errors
from flowbook.store.base import FORMAT, Aged, Buffer, Data, buffers, check_format, check_key, check_range, digest
from flowbook.store.s3_cache import Cache, folder_for
from flowbook.store.s3_client import THREADS, Answer, Bucket, Client, date_of
from flowbook.store.s3_credentials import Source

PART_BYTES = 16 << 20  # of a multipart upload, and of a read in ranges
MOST_PARTS = 10_000  # S3 takes no more in one upload
SMALL_PIECE = 64 << 10  # pieces below this are put together before they are sent
SURE_BYTES = 1 << 20  # smaller blobs are sent without asking first whether they are there
REFRESH_AFTER_S = 12 * 3600.0  # as in files.py
COPY_BYTES = 5_000_000_000  # S3 copies no more at once
MARK = "x-amz-meta-flowbook-writer"
Tags = list[tuple[str, str]]  # (ETag, checksum) of the parts of an upload
DEFAULT_REGION = "us-east-1"
ENCRYPTIONS = "AES256, kms, or kms:KEY"


class S3Store:
    """Objects below ``s3://bucket/prefix/``. `endpoint` None: Amazon's own. Nothing is asked of the server before the first use.

    `encryption`: None (as the bucket says), ``AES256``, ``kms`` or ``kms:KEY``. Raises StoreError for a place that cannot be one.
    """

    mapped = False

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        encryption: str | None = None,
        key_file: str | None = None,
        cache_bytes: int | None = None,
        deadline_s: float | None = None,
    ) -> None:
        self.place = {"bucket": bucket, "prefix": prefix, "profile": profile, "encryption": encryption, "key_file": key_file}
        self.profile, self.encryption = profile, encryption
        self.key_file: str | None = key_file or ""  # "": the key is in the environment, or nowhere
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.where = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._encrypted = _encryption(encryption)
        address = Bucket(bucket, *_address(endpoint, region), region_given=bool(region or _environment_region()))
        _check_endpoint(address.endpoint)
        self.client = Client(address, Source(profile), **({} if deadline_s is None else {"deadline_s": deadline_s}))
        self._cache_bytes = cache_bytes
        self._folder: Path | None = None
        self._id: str | None = None  # of the store, once store.json was read
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Store({self.where!r})"

    # ---- reading ----

    def get(self, key: str) -> bytes:
        name = self._cached(key)
        if name is not None and (known := self._cache.read(name)) is not None:
            return known
        answer = self.client.send("GET", self._readable(key), fine=(404,))
        self._must_exist(key, answer)
        if name is not None:
            if not self._is(name, answer.body):
                return bytes(self.open(key))  # which reads it once more, and says what is wrong
            self._cache.write(name, [answer.body])
        return answer.body

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        check_range(key, start, stop)
        name = self._cached(key)
        if name is not None and (known := self._cache.map(name)) is not None:
            return bytes(known[start:stop])
        if start == stop:
            self.size(key)
            return b""
        answer = self.client.send("GET", self._readable(key), headers={"range": f"bytes={start}-{stop - 1}"}, fine=(404, 416))
        self._must_exist(key, answer)
        if answer.status == 416:
            return b""
        return answer.body if answer.status == 206 else answer.body[start:stop]  # a server need not know ranges

    def exists(self, key: str) -> bool:
        return self._head(key) is not None

    def size(self, key: str) -> int:
        found = self._head(key)
        if found is None:
            raise StoreMissing(f"no object {key} in {self.where}")
        return int(found.headers.get("content-length", "0"))

    def open(self, key: str) -> memoryview:
        name = self._cached(key)
        if name is None:
            return memoryview(bytearray(self.get(key)))
        known = self._cache.map(name)
        if known is not None:
            return known
        for last in (False, True):
            found, right = self._fetch(key, name)
            if right:
                return found
            if last:
                break  # it was fetched anew, and is the same: not the way is bad, but what is stored
        raise ArtifactError(
            f"{key} in {self.where} is damaged: what is stored has the sha256 {digest([found])}. Remove it, and run its step again."
        )

    def _fetch(self, key: str, name: str) -> tuple[memoryview, bool]:
        """The whole object as private memory, through the cache where that has room; and whether it is what its address says."""
        first = self.client.send("GET", self._readable(key), headers={"range": f"bytes=0-{SURE_BYTES - 1}"}, fine=(404, 416))
        self._must_exist(key, first)
        size = _whole_size(first)
        if size <= len(first.body):
            if right := self._is(name, first.body):
                self._cache.write(name, [first.body])
            return memoryview(bytearray(first.body)), right
        try:
            with self._cache.fill(name, size) as memory:
                into = memory if memory is not None else memoryview(bytearray(size))
                into[: len(first.body)] = first.body
                if not self._read_ranges(key, name, into, len(first.body)):
                    raise _Wrong
                if memory is None:
                    return into, True
        except _Wrong:
            return into, False
        known = self._cache.map(name)
        return (known, True) if known is not None else (memoryview(bytearray(self.get(key))), True)  # removed again already

    def _read_ranges(self, key: str, name: str, into: memoryview, start: int) -> bool:
        """Fill `into` from `start` on, several ranges at a time; whether all of it is what its address says."""
        places = [(place, min(place + PART_BYTES, len(into))) for place in range(start, len(into), PART_BYTES)]

        def read(first: int, last: int) -> None:
            self.client.send("GET", self._path(key), headers={"range": f"bytes={first}-{last - 1}"}, into=into[first:last])

        from concurrent import futures

        reading = [self.client.threads.submit(read, *place) for place in places]
        hasher = hashlib.sha256(into[:start])
        try:
            for part, (first, last) in zip(reading, places, strict=True):
                part.result()
                hasher.update(into[first:last])
        except BaseException:
            for part in reading:
                part.cancel()
            futures.wait(reading)
            raise
        return not name.startswith("blobs/") or name.endswith(hasher.hexdigest())

    def local_path(self, key: str) -> Path | None:
        """Of a blob, which is fetched; of nothing else."""
        check_key(key)
        name = self._cached(key)
        if name is None or not name.startswith("blobs/"):
            return None
        try:
            self.open(key)
        except StoreMissing:
            return None
        path = Path(self._cache.path(name))
        return path if path.is_file() else None

    def list(self, prefix: str) -> Iterator[str]:
        folder, _, _ = prefix.rpartition("/")
        if folder:
            check_key(folder)
        self._check_format()
        for page in self._pages(prefix):
            yield from (key for key, _, _ in page.objects)

    def names(self, folder: str) -> Iterable[str]:
        start = f"{check_key(folder)}/"
        self._check_format()
        found: set[str] = set()
        for page in self._pages(start, delimiter="/"):
            found |= {key[len(start) :] for key, _, _ in page.objects} | {name[len(start) : -1] for name in page.folders}
        return sorted(found - {""})

    def aged(self, prefix: str) -> Iterator[Aged]:
        self._check_format()
        for page in self._pages(prefix):
            for key, changed, size in page.objects:
                yield Aged(key, max(0.0, page.now - _timestamp(changed)), size)  # one of the two is rounded

    def now(self) -> float:
        """The time by the server's clock."""
        return self.client.send("HEAD", fine=(403, 404)).now

    def _pages(self, prefix: str, *, delimiter: str = "", after: str = "") -> Iterator[_Page]:
        query = {"list-type": "2", "prefix": self.prefix + prefix, "encoding-type": "url"}
        query |= {"delimiter": delimiter} if delimiter else {}
        query |= {"start-after": self.prefix + after} if after else {}
        while True:
            page = _page(self.client.send("GET", query=query), self.prefix, top=not prefix)
            yield page
            if not page.more:
                return
            query["continuation-token"] = page.more

    def _head(self, key: str) -> Answer | None:
        answer = self.client.send("HEAD", self._readable(key), fine=(404,))
        return None if answer.status == 404 else answer

    def _must_exist(self, key: str, answer: Answer) -> None:
        if answer.status == 404:
            if answer.code not in s3_errors.ABSENT:  # no bucket, or no user of that name
                raise self._refused("GET", key, answer)
            raise StoreMissing(f"no object {key} in {self.where}")

    def _refused(self, method: str, key: str, answer: Answer, asked: Mapping[str, str] | None = None) -> StoreError:
        bucket = self.client.bucket
        return s3_errors.refused(bucket.name, bucket.address, bucket.region, method, key, answer, asked or {}, self.client.credentials)

    # ---- writing ----

    def create(self, key: str, data: Data) -> bool:
        self._path(key)
        self._prepare()
        if not isinstance(data, (bytes, bytearray, memoryview)) and self.exists(key):
            return False
        return self._write(key, data, {"if-none-match": "*"})

    def put(self, key: str, data: Data) -> None:
        self._path(key)
        self._prepare()
        self._write(key, data, {})

    def put_blob(self, parts: Sequence[Buffer]) -> str:
        address = digest(parts)
        key = layout.blob(address)
        size = sum(memoryview(part).nbytes for part in parts)
        if size >= SURE_BYTES and self.keep(key):
            return address
        self._prepare()
        while not self._write(key, list(parts), {"if-none-match": "*"}):
            if self.keep(key):
                break
        return address

    def keep(self, key: str) -> bool:
        found = self._head(key)
        if found is None:
            return False
        if found.now - date_of(found.headers.get("last-modified", "")) <= REFRESH_AFTER_S:
            return True
        return self._copy_onto_itself(key, int(found.headers.get("content-length", "0")))

    def _copy_onto_itself(self, key: str, size: int) -> bool:
        """Make an object young; False if it is gone. No bytes are sent.

        As parts: a plain copy of an object onto itself may leave its time as it was (versitygw does so), and takes 5 GB at most.
        """
        path, mark = self._path(key), {MARK: "kept", **self._encrypted}
        if not size:
            self.client.send("PUT", path, headers=mark)
            return True
        source = f"/{self.client.bucket.name}/{quote(path, safe='/-_.~')}"
        upload = self._begin(path, mark)
        tags: Tags = []
        try:
            for number, first in enumerate(range(0, size, COPY_BYTES), 1):
                headers = {"x-amz-copy-source": source, "x-amz-copy-source-range": f"bytes={first}-{min(first + COPY_BYTES, size) - 1}"}
                answer = self.client.send("PUT", path, {"partNumber": str(number), "uploadId": upload}, headers, fine=(404,))
                if answer.status == 404 or b"<Error>" in answer.body:
                    self._abort(path, upload)
                    if self.exists(key):
                        raise self._refused("PUT", key, answer)
                    return False
                tags.append((s3_errors.text_of(answer.body, "ETag"), s3_errors.text_of(answer.body, "ChecksumCRC32")))
            return self._complete(path, upload, tags, {}, mark[MARK], key)
        except BaseException:
            self._abort(path, upload)
            raise

    def adopt_file(self, key: str, path: Path | str) -> bool:
        import mmap

        source = Path(path)
        try:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A small file is read; a large one is sent from where the system keeps it.
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size > PART_BYTES else file.read()
            made = self.create(key, whole)
            source.unlink()
        except OSError as error:
            raise StoreError(f"cannot read {source}: {error.strerror or error}") from error
        return made

    def delete(self, key: str) -> None:
        self.client.send("DELETE", self._path(key), fine=(404,))
        if (name := self._cached(key)) is not None:
            self._cache.drop(name)

    def delete_folder(self, folder: str) -> None:
        start = f"{check_key(folder)}/"
        while True:
            page = next(iter(self._pages(start)))
            keys = [key for key, _, _ in page.objects]
            if not keys:
                return
            objects = "".join(f"<Object><Key>{_escaped(self.prefix + key)}</Key></Object>" for key in keys)
            body = f"<Delete><Quiet>true</Quiet>{objects}</Delete>".encode()
            md5 = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
            answer = self.client.send("POST", query={"delete": ""}, headers={"content-md5": md5}, body=[body])
            if b"<Error>" in answer.body:
                code, message = (s3_errors.text_of(answer.body, tag) for tag in ("Code", "Message"))
                raise StoreError(f"{self.where}: objects of {folder} could not be removed: {code}: {message}")
            if not page.more:
                return

    def sweep(self, older_than_s: float = 24 * 3600.0, *, dry_run: bool = False) -> int:
        """Give up the multipart uploads that killed writers left unfinished; gives how many."""
        found, marker = 0, dict[str, str]()
        while True:
            answer = self.client.send("GET", query={"uploads": "", "prefix": self.prefix, "encoding-type": "url", **marker})
            root = _xml(answer.body)
            for upload in root.iter("Upload"):
                if max(0.0, answer.now - _timestamp(_text(upload, "Initiated"))) >= older_than_s:  # one of the two is rounded
                    found += 1
                    if not dry_run:
                        self._abort(unquote(_text(upload, "Key")), _text(upload, "UploadId"))
            if _text(root, "IsTruncated") != "true":
                return found
            marker = {"key-marker": unquote(_text(root, "NextKeyMarker")), "upload-id-marker": _text(root, "NextUploadIdMarker")}

    def local_dir(self) -> Path:
        """Not shared by stores: its name holds where the store is."""
        with self._lock:
            if self._folder is None:
                self._folder = folder_for(hashlib.sha256(f"{self.client.bucket.endpoint} {self.where}".encode()).hexdigest()[:24])
            return self._folder

    def describe(self) -> dict[str, Any]:
        """As this process sees the place; how to sign is each process's own affair."""
        bucket = self.client.bucket
        region = {"region": bucket.region} if bucket.region_given else {}
        return {"kind": "s3", **{name: value for name, value in self.place.items() if value}, "endpoint": bucket.endpoint, **region}

    # ---- the parts of a write ----

    def _write(self, key: str, data: Data, condition: Mapping[str, str]) -> bool:
        """Whether this call wrote the object; with a condition, an object that is there stays."""
        path, mark = self._path(key), os.urandom(12).hex()
        parts = _parts(data)
        first = next(parts)
        second = next(parts, None)
        if second is None:
            headers = {**condition, MARK: mark, **self._encrypted}
            answer = self.client.send("PUT", path, headers=headers, body=first, fine=(412,))
            return answer.status != 412 or (answer.doubtful and self._is_marked(key, mark))
        upload = self._begin(path, {MARK: mark, **self._encrypted})
        try:
            tags = self._send_parts(path, upload, _chain(first, second, parts))
            made = self._complete(path, upload, tags, condition, mark, key)
        except BaseException:
            self._abort(path, upload)
            raise
        if not made:
            self._abort(path, upload)
        return made

    def _is_marked(self, key: str, mark: str) -> bool:
        found = self._head(key)
        return found is not None and found.headers.get(MARK) == mark

    def _begin(self, path: str, headers: Mapping[str, str]) -> str:
        # Twice begun is no harm: what is not completed goes with the garbage.
        more = {**headers, "x-amz-checksum-algorithm": "CRC32"}
        upload = s3_errors.text_of(self.client.send("POST", path, {"uploads": ""}, more).body, "UploadId")
        if not upload:
            raise StoreError(f"{self.where}: the server began no multipart upload. Is {self.client.bucket.address} an S3 server?")
        return upload

    def _send_parts(self, path: str, upload: str, parts: Iterable[Sequence[Buffer]]) -> Tags:
        """(ETag, checksum) of each part. At most THREADS are on their way, so that data which is made meanwhile need not be kept."""

        def send(number: int, body: Sequence[Buffer]) -> tuple[str, str]:
            answer = self.client.send("PUT", path, {"partNumber": str(number), "uploadId": upload}, body=body)
            return answer.headers.get("etag", ""), answer.headers.get("x-amz-checksum-crc32", "")

        from concurrent import futures  # most pods move nothing large

        sent: list[futures.Future[tuple[str, str]]] = []
        try:
            waiting: set[futures.Future[tuple[str, str]]] = set()
            for number, body in enumerate(parts, 1):
                if len(waiting) >= THREADS:
                    done, waiting = futures.wait(waiting, return_when=futures.FIRST_COMPLETED)
                    for each in done:
                        each.result()
                future = self.client.threads.submit(send, number, body)
                sent.append(future)
                waiting.add(future)
            return [each.result() for each in sent]
        except BaseException:
            for each in sent:
                each.cancel()
            futures.wait(sent)
            raise

    def _complete(self, path: str, upload: str, tags: Tags, condition: Mapping[str, str], mark: str, key: str = "") -> bool:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{_escaped(tag)}</ETag>"
            + (f"<ChecksumCRC32>{checksum}</ChecksumCRC32>" if checksum else "")
            + "</Part>"
            for number, (tag, checksum) in enumerate(tags, 1)
        )
        body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}</CompleteMultipartUpload>'.encode()
        answer = self.client.send("POST", path, {"uploadId": upload}, condition, [body], fine=(404, 412))
        if answer.status < 300 and b"<Error>" not in answer.body:
            return True
        if key and self._is_marked(key, mark):
            return True  # an earlier try had done it: its answer was lost
        if answer.status == 412:
            return False
        raise self._refused("POST", path, answer, condition)  # S3 begins to answer 200 before it knows

    def _abort(self, path: str, upload: str) -> None:
        try:
            self.client.send("DELETE", path, {"uploadId": upload}, fine=(404,))
        except StoreError:
            pass  # it goes with the garbage

    # ---- what the store is ----

    def _path(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _readable(self, key: str) -> str:
        path = self._path(key)
        self._check_format()
        return path

    def _check_format(self) -> None:
        """Refuse a store that a later flowbook wrote. An absent store.json is asked for again next time."""
        if self._id is None:
            answer = self.client.send("GET", self.prefix + layout.STORE, fine=(404,))
            if answer.status != 404:
                data = check_format(answer.body, f"{self.where}/{layout.STORE}", self.where, "another prefix")
                self._id = "".join(c for c in str(data.get("id", "none")) if c.isalnum()) or "none"
            elif answer.code not in s3_errors.ABSENT:
                raise self._refused("GET", layout.STORE, answer)

    def _prepare(self) -> None:
        """store.json, if it is not there; by making it a server is found out that does not heed conditions."""
        self._check_format()
        if self._id is not None:
            return
        text = json.dumps({"format": FORMAT, "written_by": __version__, "id": os.urandom(12).hex()}).encode()
        path = self.prefix + layout.STORE
        headers = {"if-none-match": "*", **self._encrypted}
        self.client.send("PUT", path, headers=headers, body=[text], fine=(412,))
        again = self.client.send("PUT", path, headers=headers, body=[text], fine=(412,))
        if again.status != 412:
            self.client.send("DELETE", path, fine=(403,))  # else the next process takes the store for one that is in order
            bucket = self.client.bucket
            raise s3_errors.no_conditions(bucket.name, bucket.address, "it takes such a request and overwrites what is there")
        self._check_format()

    # ---- the cache ----

    @property
    def _cache(self) -> Cache:
        found: Cache | None = self.__dict__.get("_cache_made")
        if found is None:
            found = self.__dict__["_cache_made"] = Cache(self.local_dir() / "objects", self._cache_bytes)
        return found

    def _cached(self, key: str) -> str | None:
        """The name in the cache of what never changes; None for all else."""
        check_key(key)
        if key.startswith("blobs/"):
            return key
        if key.endswith(".COMMIT"):
            self._check_format()
            return f"commits/{self._id}/{hashlib.sha256(key.encode()).hexdigest()}" if self._id else None
        return None

    def _is(self, name: str, content: Buffer) -> bool:
        """Whether content may be kept under that name: blobs are what their address says."""
        return not name.startswith("blobs/") or name.endswith(digest([content]))


class _Wrong(Exception):
    """What was read is not what its address says."""


# ---- where ----------------------------------------------------------------------------------------------------------------------------


def _environment_region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""


def _address(endpoint: str | None, region: str | None) -> tuple[str, str]:
    """Endpoint and region, from what is given, else from the AWS tools' variables, else Amazon's own."""
    where = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    there = region or _environment_region() or DEFAULT_REGION
    domain = "amazonaws.com.cn" if there.startswith("cn-") else "amazonaws.com"
    return where.rstrip("/") if where else f"https://{{bucket}}.s3.{there}.{domain}", there


def _check_endpoint(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise StoreError(f"s3_endpoint = {endpoint!r} is no address: write it like 'https://s3.example.org' or 'http://localhost:9000'.")
    if "@" in parts.netloc:
        raise StoreError("s3_endpoint holds a user or a password. Take it out; give credentials by AWS_ACCESS_KEY_ID or a profile.")
    if parts.query or parts.fragment:
        raise StoreError(f"s3_endpoint = {endpoint!r} has a part behind its path; write it without.")


def _encryption(wanted: str | None) -> dict[str, str]:
    """Headers that ask for it. Raises StoreError for what is none."""
    if not wanted:
        return {}
    kind, _, key = wanted.partition(":")
    if wanted == "AES256":
        return {"x-amz-server-side-encryption": "AES256"}
    if kind == "kms" and (key or ":" not in wanted):
        return {"x-amz-server-side-encryption": "aws:kms"} | ({"x-amz-server-side-encryption-aws-kms-key-id": key} if key else {})
    raise StoreError(f"s3_encryption = {wanted!r} is none of {ENCRYPTIONS}.")


# ---- pieces ----------------------------------------------------------------------------------------------------------------------------


def _parts(data: Data) -> Iterator[list[Buffer]]:
    """The pieces of `data` in lists of PART_BYTES each, the last one shorter; at least one list. Only small pieces are copied.

    What an iterator gives is copied unless it cannot change: it may be filled anew for the next piece.
    """
    lasting = isinstance(data, (bytes, bytearray, memoryview, list, tuple))
    size = sum(memoryview(piece).nbytes for piece in buffers(data)) if lasting else 0
    room, made = max(PART_BYTES, -(-size // MOST_PARTS)), 0
    part: list[Buffer] = []
    left = room
    for piece in buffers(data):
        view = memoryview(piece if lasting or isinstance(piece, bytes) else bytes(piece))
        view = view.cast("B") if view.nbytes else memoryview(b"")
        while view:
            taken, view = view[:left], view[left:]
            if part and len(taken) < SMALL_PIECE and isinstance(part[-1], bytearray):
                part[-1] += taken
            else:
                part.append(bytearray(taken) if len(taken) < SMALL_PIECE else taken)
            left -= len(taken)
            if not left:
                yield part
                made += 1
                room = room if lasting or made % 1000 else 2 * room  # 10,000 parts have to be enough for any length
                part, left = [], room
    if part or not made:
        yield part


def _chain(first: list[Buffer], second: list[Buffer], rest: Iterator[list[Buffer]]) -> Iterator[list[Buffer]]:
    yield first
    yield second
    yield from rest


def _whole_size(answer: Answer) -> int:
    """Of an object of which a range was read."""
    if answer.status == 416:
        return 0
    told = answer.headers.get("content-range", "").rpartition("/")[2]
    return int(told) if told.isdigit() else len(answer.body)


# ---- XML -------------------------------------------------------------------------------------------------------------------------------


class _Page:
    """One page of a listing: (key, time of the last change, bytes) of objects, folders, and how to ask for the next page."""

    def __init__(self, objects: list[tuple[str, str, int]], folders: list[str], now: Callable[[], float], more: str) -> None:
        self.objects, self.folders, self.more = objects, folders, more
        self._now = now

    @property
    def now(self) -> float:
        return self._now()


def _page(answer: Answer, prefix: str, *, top: bool) -> _Page:
    root = _xml(answer.body)
    objects = []
    for found in root.iter("Contents"):
        key = unquote(_text(found, "Key"))[len(prefix) :]
        if key.endswith("/") or (top and key == layout.STORE):
            continue  # a folder that another tool made; what the store keeps for itself
        objects.append((key, _text(found, "LastModified"), int(_text(found, "Size") or 0)))
    folders = [unquote(_text(found, "Prefix"))[len(prefix) :] for found in root.iter("CommonPrefixes")]
    more = _text(root, "NextContinuationToken") if _text(root, "IsTruncated") == "true" else ""
    return _Page(objects, folders, lambda: answer.now, more)


def _xml(body: bytes) -> Any:
    import re
    from xml.etree import ElementTree

    try:
        return ElementTree.fromstring(re.sub(rb' xmlns="[^"]*"', b"", body, count=1))
    except ElementTree.ParseError as error:
        raise StoreError(f"the server's answer is not what S3 answers ({error}). Look at s3_endpoint in the settings.") from None


def _text(element: Any, tag: str) -> str:
    return element.findtext(tag) or ""


def _timestamp(text: str) -> float:
    """Seconds since the epoch of ``2026-11-25T16:48:02.000Z``."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise StoreError(f"the S3 server gives no time that can be read, but {text!r}: ages cannot be told.") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
