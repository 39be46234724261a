"""Requests to one bucket: signed, sent over connections that are kept, and repeated until they are answered or time is up.

This is the one place that repeats anything. A request that may have done its work unseen (its answer was lost, or was a 5xx) is
marked in the `Answer` as `doubtful`, so that a caller for whom twice is not once can look. Standard library only: a client costs
milliseconds, in a kernel and in every pod. Safe in threads, and in a process that was forked from one that used it.

What is sent is the HTTP interface of S3: https://docs.aws.amazon.com/AmazonS3/latest/API/ ; how it is signed is
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import http.client
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import mktime_tz, parsedate_tz
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from flowbook.errors import StoreError
from flowbook.store import s3_errors as told
from flowbook.store.base import Buffer
from flowbook.store.s3_credentials import Credentials, Source

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

CONNECT_S, READ_S = 10.0, 60.0
DEADLINE_S = 60.0  # for a request and all its repetitions, once the server has answered anything
FIRST_DEADLINE_S = 5.0  # until then: a wrong address is told soon
LONGEST_PAUSE_S = 5.0
THREADS = 8  # parts of one object on their way at the same time
SMALL_BODY = 1 << 20  # up to here the signature covers the content; above, a checksum does
AGAIN = {408, 429, 500, 502, 503, 504}
AGAIN_CODES = {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "ConditionalRequestConflict", "OperationAborted"}
UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True)
class Bucket:
    """Where requests go. `endpoint` is a URL; with ``{bucket}`` in its host the bucket stands there, else in the path."""

    name: str
    endpoint: str
    region: str
    region_given: bool = True  # else the server may correct it

    @property
    def address(self) -> str:
        """The endpoint as a person would type it."""
        return self.endpoint.replace("{bucket}", self.name)

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    @property
    def secure(self) -> bool:
        return urlsplit(self.endpoint).scheme == "https"

    def path(self, key: str) -> str:
        parts = urlsplit(self.endpoint)
        place = "" if "{bucket}" in parts.netloc else f"/{self.name}"
        return f"{parts.path.rstrip('/')}{place}/{quote(key, safe='/-_.~')}"


@dataclass(frozen=True)
class Answer:
    """`doubtful`: an earlier try of this request may have done its work. `body` is empty where it was read into memory given."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    doubtful: bool = False
    size: int = 0  # bytes that were read into memory given

    @functools.cached_property
    def code(self) -> str:
        """The server's own word for an error: ``NoSuchKey``."""
        return told.text_of(self.body, "Code") if self.status >= 300 else ""

    @property
    def now(self) -> float:
        """The time by the server's clock when it answered, in seconds since the epoch."""
        return date_of(self.headers.get("date", ""))


def date_of(text: str) -> float:
    """Seconds since the epoch of a date as HTTP writes it. Raises StoreError."""
    found = parsedate_tz(text)
    if found is None:
        raise StoreError(f"the S3 server gives no date that can be read, but {text!r}: ages cannot be told. Is it an S3 server?")
    return float(mktime_tz(found))


class Client:
    """`send` is all there is; `parallel` runs several at the same time."""

    def __init__(self, bucket: Bucket, credentials: Source, *, deadline_s: float = DEADLINE_S) -> None:
        self.bucket, self.credentials, self.deadline_s = bucket, credentials, deadline_s
        self._fresh()

    def _fresh(self) -> None:
        self._pid = os.getpid()
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._reached = getattr(self, "_reached", False)
        self._skew_s: float = getattr(self, "_skew_s", 0.0)  # of the server's clock, as it said when it refused a signature

    # ---- one request ----------------------------------------------------------------------------------------------------------

    def send(
        self,
        method: str,
        key: str = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Sequence[Buffer] = (),
        *,
        into: memoryview | None = None,
        fine: Iterable[int] = (),
    ) -> Answer:
        """The answer, if its status is 2xx or among `fine`. Raises StoreError for all else, once repeating it is of no use.

        With `into` the content of a 2xx answer is read into that memory; less than fits there counts as an answer cut off.
        """
        if self._pid != os.getpid():
            self._fresh()  # connections belong to the process that opened them
        started, tries, doubtful, corrected = time.monotonic(), 0, False, set[str]()
        size = sum(memoryview(piece).nbytes for piece in body)
        digest = told.EMPTY_SHA256 if not size else _digest(body) if size <= SMALL_BODY else UNSIGNED
        more = dict(headers or {})
        if digest == UNSIGNED or "partNumber" in (query or {}):  # of an upload all parts have one, or none
            more["x-amz-checksum-crc32"] = _crc32(body)
        while True:
            tries += 1
            try:
                answer = self._exchange(method, key, query or {}, more, body, size, digest, into)
            except (OSError, http.client.HTTPException) as error:
                doubtful = True
                if told.is_final(error) or self._late(started, tries):
                    raise told.unreachable(self.bucket.name, self.bucket.address, error, time.monotonic() - started) from error
                self._pause(tries, 0.0)
                continue
            self._reached = True
            if answer.status < 300 or answer.status in fine:
                return replace(answer, doubtful=doubtful)
            if self._correct(answer, corrected):
                continue
            if (answer.status in AGAIN or answer.code in AGAIN_CODES) and not self._late(started, tries):
                doubtful = doubtful or answer.status != 409
                self._pause(tries, _seconds(answer.headers.get("retry-after", "")))
                continue
            raise told.refused(
                self.bucket.name, self.bucket.address, self.bucket.region, method, key, answer, {**more, **(query or {})}, self.credentials
            )

    def _late(self, started: float, tries: int) -> bool:
        deadline = self.deadline_s if self._reached else min(FIRST_DEADLINE_S, self.deadline_s)
        return time.monotonic() - started + _backoff(tries) > deadline

    def _pause(self, tries: int, least_s: float) -> None:
        if tries > 1 or least_s:  # the first time it is most often a connection that had been idle for too long
            time.sleep(max(min(least_s, LONGEST_PAUSE_S), random.uniform(0, _backoff(tries))))

    def _correct(self, answer: Answer, corrected: set[str]) -> bool:
        """Whether an answer tells what to do better, and it was not done before in this request."""
        code, region = answer.code, answer.headers.get("x-amz-bucket-region") or told.text_of(answer.body, "Region")
        if answer.status in (301, 307, 400) and region and region != self.bucket.region and not self.bucket.region_given:
            what = "region"
            self.bucket = replace(self.bucket, region=region, endpoint=self.bucket.endpoint.replace(self.bucket.region, region))
        elif code == "RequestTimeTooSkewed":
            what, self._skew_s = code, answer.now - time.time()
        elif code in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
            what = "token"
            if "token" in corrected or not self.credentials.renew():
                return False
        else:
            return False
        if what in corrected:
            return False
        corrected.add(what)
        return True

    def _exchange(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Sequence[Buffer],
        size: int,
        digest: str,
        into: memoryview | None,
    ) -> Answer:
        """Once there and back. Raises OSError and HTTPException."""
        path = self.bucket.path(key)
        text = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in sorted(query.items()))
        signed = self._signed(method, path, text, headers, digest)
        if body or method in ("PUT", "POST"):
            signed["content-length"] = str(size)
        connection = self._take()
        try:
            try:
                connection.request(method, f"{path}?{text}" if text else path, body=_bodies(body), headers=signed)
            except (BrokenPipeError, ConnectionResetError):
                if not size:
                    raise
                # An answer may be there all the same: a server need not read what it refuses.
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            if into is None or response.status >= 300:
                answer = Answer(response.status, found, response.read())
            else:
                _read_into(response, into)
                answer = Answer(response.status, found, b"", size=len(into))
                response.close()
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return answer

    def _signed(self, method: str, path: str, query: str, headers: Mapping[str, str], digest: str) -> dict[str, str]:
        found = self.credentials.get()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + self._skew_s))
        more = {**headers, "host": self.bucket.host, "x-amz-date": stamp, "x-amz-content-sha256": digest}
        if found.token:
            more["x-amz-security-token"] = found.token
        return more | {"authorization": authorization(found, self.bucket.region, stamp, method, path, query, more, digest)}

    # ---- connections ------------------------------------------------------------------------------------------------------------

    def _take(self) -> http.client.HTTPConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return connect(self.bucket.host, self.bucket.secure)

    @property
    def threads(self) -> ThreadPoolExecutor:
        """For the parts of large objects."""
        if self._pid != os.getpid():
            self._fresh()
        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # most pods move nothing large

                self._pool = ThreadPoolExecutor(THREADS, "flowbook-s3")
            return self._pool


# ---- what it is made of -----------------------------------------------------------------------------------------------------------


def connect(host: str, secure: bool) -> http.client.HTTPConnection:
    """An open connection, through the proxy that the environment names for it, if any. Raises OSError."""
    connection: http.client.HTTPConnection
    proxy = _proxy(host, secure)
    there = urlsplit(proxy).netloc.rpartition("@")[2] if proxy else host
    if secure:
        connection = http.client.HTTPSConnection(there, timeout=CONNECT_S, context=_tls(os.environ.get("AWS_CA_BUNDLE") or None))
    else:
        connection = http.client.HTTPConnection(there, timeout=CONNECT_S)
    if proxy:
        connection.set_tunnel(host)
    connection.connect()
    if connection.sock is not None:
        connection.sock.settimeout(READ_S)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _proxy(host: str, secure: bool) -> str:
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return ""
    from urllib.request import getproxies, proxy_bypass

    found = getproxies()
    return "" if proxy_bypass(host.partition(":")[0]) else found.get("https" if secure else "http", "")


@functools.lru_cache(4)
def _tls(authorities: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities)
    except OSError as error:
        raise StoreError(f"AWS_CA_BUNDLE = {authorities!r} cannot be read: {error}. Name a file of certificates, or unset it.") from error


def _backoff(tries: int) -> float:
    return min(0.1 * 2.0**tries, LONGEST_PAUSE_S)


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _bodies(body: Sequence[Buffer]) -> Any:
    return None if not body else body[0] if len(body) == 1 else iter(body)


def _read_into(response: http.client.HTTPResponse, into: memoryview) -> None:
    place = 0
    while place < len(into):
        count = response.readinto(into[place:])
        if not count:
            raise http.client.IncompleteRead(b"", len(into) - place)
        place += count


def _digest(body: Sequence[Buffer]) -> str:
    hasher = hashlib.sha256()
    for piece in body:
        hasher.update(piece)
    return hasher.hexdigest()


def _crc32(body: Sequence[Buffer]) -> str:
    import base64
    import zlib

    found = 0
    for piece in body:
        found = zlib.crc32(piece, found)
    return base64.b64encode(found.to_bytes(4, "big")).decode()


def authorization(
    found: Credentials, region: str, stamp: str, method: str, path: str, query: str, headers: Mapping[str, str], digest: str
) -> str:
    """The header of that name: Signature Version 4 over the method, the path, the query and all `headers` (lower case names)."""
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in sorted(headers))
    request = "\n".join((method, path, query, lines, names, digest))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = hmac.new(_signing_key(found.secret_key, stamp[:8], region), text.encode(), "sha256").hexdigest()
    return f"AWS4-HMAC-SHA256 Credential={found.access_key}/{scope},SignedHeaders={names},Signature={signature}"


@functools.lru_cache(8)
def _signing_key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key
