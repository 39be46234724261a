"""A server between a client and the S3 server that can misbehave, request by request.

`fault(method, path, headers)` is asked for every request, under a lock, and says what becomes of it:

    None            it is passed on
    "lose"          it is passed on, and the connection is cut before the answer
    "cut"           the connection is cut, and nothing is passed on
    "half"          half of the answer's body is passed on
    (503, "SlowDown")   that is answered, and nothing is passed on
    bytes           it is passed on, and this is the body of the answer
    "unconditional" it is passed on without its condition, as a server would do it that does not know conditions
    "racy"          the server looks first and then writes without the condition: it keeps the promise to one writer, and not to two
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from flowbook.store.s3_client import Bucket, Client
from flowbook.store.s3_credentials import Source

TOGETHER_S = 3.0  # for which "racy" waits for a second writer

Fault = Callable[[str, str, dict[str, str]], Any]


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.fault: Fault = lambda method, path, headers: None
        self.seen: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.looking = threading.Condition()
        self.looked: dict[str, int] = {}  # path → how many have looked, by "racy"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.seen.append((self.command, self.path))
            fault = self.server.fault(self.command, unquote(self.path), headers)
        if fault == "cut":
            self._cut()
        elif isinstance(fault, tuple):
            self._answer(fault[0], {}, b"" if self.command == "HEAD" else f"<Error><Code>{fault[1]}</Code></Error>".encode())
        else:
            acts = {"unconditional": self._unconditional, "racy": self._racy}
            status, found, text = (acts.get(fault, self._passed_on) if isinstance(fault, str) else self._passed_on)(body)
            if fault == "lose":
                self._cut()
            elif fault == "half":
                self._answer(status, found, text, text[: len(text) // 2])
                self._cut()
            else:
                self._answer(status, found, fault if isinstance(fault, bytes) else text)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.server.upstream).netloc, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Host too: it is signed
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def _unconditional(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        client = Client(Bucket(bucket, self.server.upstream, "us-east-1"), Source())
        kept = {name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta")}
        answer = client.send(self.command, key, dict(parse_qsl(parts.query, keep_blank_values=True)), kept, [body])
        return answer.status, dict(answer.headers), answer.body

    def _racy(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Looks, waits for another who looks (a moment, for there may be none), writes."""
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        client = Client(Bucket(bucket, self.server.upstream, "us-east-1"), Source())
        there = client.send("HEAD", key, fine=(404,)).status == 200
        with self.server.looking:
            self.server.looked[key] = self.server.looked.get(key, 0) + 1
            self.server.looking.notify_all()
            if not there:
                self.server.looking.wait_for(lambda: self.server.looked[key] > 1, TOGETHER_S)
        if there:
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
        return self._unconditional(body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes, sent: bytes | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else sent)

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def between(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
