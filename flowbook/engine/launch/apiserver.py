"""The API server of a cluster: requests as raw JSON, and one watch of the pods of a run.

Only this file names the library `kubernetes`, and only when a cluster is first used: it reads kubeconfigs and service accounts, keeps
tokens fresh, and sets up TLS. Its typed models are not used: to build them for each event costs fifty times what reading JSON does.

All calls block and belong in threads. There is one layer of retries, here: 429 and 5xx (with Retry-After), and connections that break,
until `patience_s` is over; what is created has its name beforehand, so a create may be repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flowbook.errors import ClusterError

Json = Any
Query = Mapping[str, str | int]

AGAIN = (429, 500, 502, 503, 504)
PATIENCE_S = 600.0  # for which a server that does not answer is asked again
CONNECT_S, READ_S = 10.0, 60.0
WATCH_S = 300  # after which the server ends a watch, and it is begun anew
SILENT_S = 90.0  # a watch that says nothing for so long is dead: bookmarks come every minute
LONGEST_WAIT_S = 30.0
LOOK = "look at its address in the kubeconfig, and at the network to it (VPN, proxy)"  # where it never answered
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Refused(ClusterError):
    """The API server answered with an error: its code and what it said."""

    def __init__(self, code: int, body: str, retry_after_s: float | None = None) -> None:
        self.code, self.body, self.retry_after_s = code, body, retry_after_s
        super().__init__(f"the cluster answered {code}: {body[:300]}")


class Api:
    """One API server, as one account. May be used from several threads.

    `answer_s`: how long one answer may take. `trouble` is told why a request has to wait, and "" when it went through after all.
    """

    def __init__(
        self,
        configuration: Any,
        namespace: str,
        *,
        patience_s: float = PATIENCE_S,
        answer_s: float = READ_S,
        trouble: Callable[[str], None] = lambda message: None,
        workers: int = 64,
    ) -> None:
        from kubernetes.client import rest

        configuration.connection_pool_maxsize = workers
        self._configuration, self.namespace, self._patience_s, self.trouble = configuration, namespace, patience_s, trouble
        self._answer_s, self._reached = answer_s, False
        self._pool: Any = rest.RESTClientObject(configuration).pool_manager
        self.host: str = configuration.host

    @classmethod
    def connect(cls, context: str | None = None, environ: Mapping[str, str] | None = None, **options: Any) -> Api:
        """By the service account of the pod that this runs in, else by the kubeconfig. Raises ClusterError where there is neither."""
        from kubernetes import client, config

        env = os.environ if environ is None else environ
        configuration = client.Configuration()
        named = env.get("KUBECONFIG") or None
        file = named or str(Path.home() / ".kube" / "config")  # the library would take the KUBECONFIG of when it was loaded
        try:
            if env.get("KUBERNETES_SERVICE_HOST") and named is None and context is None:
                config.load_incluster_config(client_configuration=configuration)
                namespace = OWN_NAMESPACE.read_text().strip()
            else:
                config.load_kube_config(config_file=file, context=context, client_configuration=configuration)
                namespace = _namespace(config.list_kube_config_contexts(config_file=file), context)
        except config.ConfigException as error:
            where = named or "~/.kube/config"
            if context is not None and (known := _contexts(config, file)) and context not in known:
                raise ClusterError(
                    f"the kubeconfig {where} has no context {context!r}: correct kubernetes_context. Contexts there: {', '.join(known)}"
                ) from None
            raise ClusterError(
                f"no cluster is set up here: {str(error).rstrip('.')}. Inside a cluster the service account of the pod is used, elsewhere "
                f"{where}: put a kubeconfig there, or name one with KUBECONFIG"
            ) from None
        except Exception as error:  # a kubeconfig is whatever somebody wrote
            raise ClusterError(f"the kubeconfig {named or '~/.kube/config'} cannot be used: {type(error).__name__}: {error}") from None
        return cls(configuration, namespace, **options)

    # ---- requests ----

    def get(self, path: str, query: Query | None = None) -> Json:
        return self.request("GET", path, query=query)

    def create(self, path: str, body: Json) -> Json:
        return self.request("POST", path, body=body)

    def delete(self, path: str, query: Query | None = None, body: Json = None) -> None:
        """Nothing happens if it is not there."""
        try:
            self.request("DELETE", path, query=query, body=body)
        except Refused as refused:
            if refused.code != 404:
                raise

    def request(self, method: str, path: str, *, query: Query | None = None, body: Json = None, patience_s: float | None = None) -> Json:
        """The answer as JSON (None if it is no JSON). Raises Refused, and ClusterError when patience is over."""
        until = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        delay, troubled = 0.2, False
        while True:
            wait_s: float | None = None
            try:
                data = self._once(method, path, query, body)
                if troubled:
                    self.trouble("")
                return _json(data)
            except Refused as refused:
                if refused.code not in AGAIN:
                    raise
                why, wait_s = f"the cluster is busy ({refused.code})", refused.retry_after_s
            except OSError as error:
                why = self._unreachable(error)
            pause = max(wait_s or 0.0, delay * random.uniform(0.75, 1.25))
            if time.monotonic() + pause > until:
                raise ClusterError(f"{why}; given up after {self._patience_s:.0f} s" + ("" if self._reached else f": {LOOK}"))
            troubled = True
            self.trouble(f"{why}. It is asked again" + ("; what runs goes on" if self._reached else f": {LOOK}"))
            time.sleep(pause)
            delay = min(2 * delay, LONGEST_WAIT_S)

    def _unreachable(self, error: OSError) -> str:
        text = str(error.__cause__ or error)
        if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
            raise ClusterError(f"the certificate of {self.host} is not one that the kubeconfig trusts: {text}") from None
        return f"the cluster {self.host} does not answer ({_short(error)})"

    def _once(self, method: str, path: str, query: Query | None, body: Json) -> bytes:
        response = self._send(method, path, query, body, self._answer_s)
        self._reached = True
        try:
            data = response.read()
        except Exception as error:
            raise OSError(_short(error)) from error
        finally:
            response.release_conn()
        _check(response, data)
        return bytes(data)

    def _send(self, method: str, path: str, query: Query | None, body: Json, read_s: float | None) -> Any:
        """The response with its body unread. Raises OSError for whatever goes wrong on the way."""
        import urllib3

        url = f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": "application/json", **self._authorization()}
        sent = None if body is None else json.dumps(body).encode()
        try:
            return self._pool.request(
                method,
                url,
                body=sent,
                headers=headers,
                preload_content=False,
                retries=False,
                timeout=urllib3.Timeout(connect=min(CONNECT_S, self._answer_s), read=read_s),
            )
        except urllib3.exceptions.HTTPError as error:
            raise OSError(_short(error)) from error

    def _authorization(self) -> dict[str, str]:
        token = self._configuration.auth_settings().get("BearerToken")
        return {"authorization": token["value"]} if token else {}

    # ---- streams ----

    def open(self, path: str, query: Query, read_s: float | None = SILENT_S) -> Stream:
        """An answer that is read as it comes. Raises Refused, OSError; nothing is tried again here."""
        response = self._send("GET", path, query, None, read_s)
        if response.status >= 400:
            data = response.read()
            response.release_conn()
            _check(response, data)
        return Stream(response)

    def forward(self, namespace: str, pod: str, port: int) -> socket.socket:
        """A connection to a port of a pod's loopback. Raises Refused, OSError."""
        from kubernetes.client import ApiException
        from kubernetes.stream.ws_client import portforward_call

        url = f"{self.host}/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
        try:
            forwarded = portforward_call(
                self._configuration, "GET", url, query_params=[("ports", str(port))], headers=self._authorization()
            )
            found: socket.socket = forwarded.socket(port)
        except ApiException as error:
            if "403" in str(error.reason):
                raise Refused(403, str(error.reason)) from None
            raise OSError(str(error.reason)) from None
        return found


class Stream:
    """A response that goes on: lines of a watch, or what a container prints."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def chunks(self) -> Iterator[bytes]:
        """Raises OSError when the connection breaks, or says nothing for too long."""
        import urllib3

        try:
            yield from self._response.stream(1 << 16)
        except (urllib3.exceptions.HTTPError, AttributeError, ValueError) as error:  # the last two: closed by another thread
            raise OSError(_short(error)) from error
        finally:
            self._response.close()

    def lines(self) -> Iterator[bytes]:
        rest = b""
        for chunk in self.chunks():
            *whole, rest = (rest + chunk).split(b"\n")
            yield from whole

    def close(self) -> None:
        """From any thread: whoever reads, stops."""
        with contextlib.suppress(Exception):
            self._response.shutdown()


class PodWatch:
    """All pods of one selector, from a thread of its own: list, watch, and list again when the server has forgotten where we were.

    `heard(pods, whole)`: name → pod, or None for one that is gone; `whole`: these are all there are. `failed(error)`: it cannot go on.
    Both are called in the watch's thread.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        selector: str,
        heard: Callable[[dict[str, Json], bool], None],
        failed: Callable[[ClusterError], None],
    ) -> None:
        self._api, self._path, self._selector = api, f"/api/v1/namespaces/{namespace}/pods", selector
        self._heard, self._failed = heard, failed
        self._closed = False
        self._stream: Stream | None = None
        self.relists = 0  # how often all was read anew because a version had expired
        self._thread = threading.Thread(target=self._run, name="flowbook-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        if self._stream is not None:
            self._stream.close()

    def _run(self) -> None:
        try:
            while not self._closed:
                self._follow(self._list())
        except ClusterError as error:
            if not self._closed:
                self._failed(error)
        except Exception as error:
            if not self._closed:
                self._failed(ClusterError(f"the pods can no longer be watched: {type(error).__name__}: {error}"))

    def _list(self) -> str:
        """All pods, a page at a time; gives the version from which to watch."""
        found: dict[str, Json] = {}
        query: dict[str, str | int] = {"labelSelector": self._selector, "limit": 500}
        while True:
            page = self._api.get(self._path, query)
            for pod in page["items"]:
                found[pod["metadata"]["name"]] = pod
            following = page["metadata"].get("continue")
            if not following:
                break
            query["continue"] = following
        self._heard(found, True)
        return str(page["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> None:
        """Watch for as long as the server knows the version."""
        delay = 0.2
        while not self._closed:
            query: Query = {
                "labelSelector": self._selector,
                "watch": 1,
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": WATCH_S,
            }
            try:
                self._stream = self._api.open(self._path, query)
                for line in self._stream.lines():
                    event = _json(line)
                    if event is None:
                        continue
                    if event["type"] == "ERROR":
                        if event["object"].get("code") == 410:
                            self.relists += 1
                            return
                        raise OSError(str(event["object"].get("message")))
                    version = event["object"]["metadata"]["resourceVersion"]
                    delay = 0.2
                    if event["type"] != "BOOKMARK":
                        self._tell(event)
            except Refused as refused:
                if refused.code == 410:
                    self.relists += 1
                    return
                if refused.code not in AGAIN:
                    raise
                self._pause(max(delay, refused.retry_after_s or 0.0))
                delay = min(2 * delay, LONGEST_WAIT_S)
            except OSError:
                if not self._closed:
                    self._pause(delay)
                    delay = min(2 * delay, LONGEST_WAIT_S)

    def _tell(self, event: Json) -> None:
        pod = event["object"]
        self._heard({pod["metadata"]["name"]: None if event["type"] == "DELETED" else pod}, False)

    def _pause(self, seconds: float) -> None:
        time.sleep(seconds * random.uniform(0.75, 1.25))


def _check(response: Any, data: bytes) -> None:
    if response.status >= 400:
        raise Refused(response.status, data.decode("utf-8", "replace"), _retry_after(response.headers.get("Retry-After")))


def _retry_after(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None


def _json(data: bytes) -> Json:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _short(error: BaseException) -> str:
    text = str(error.__cause__ or error).rpartition(": ")[2] or str(error)
    return text[:200] or type(error).__name__


def _contexts(config: Any, file: str) -> list[str]:
    """The names of the contexts of a kubeconfig; none if it cannot be read."""
    try:
        return [str(each["name"]) for each in config.list_kube_config_contexts(config_file=file)[0]]
    except Exception:  # it is whatever somebody wrote, and this is only for the message
        return []


def _namespace(found: Any, context: str | None) -> str:
    contexts, current = found
    wanted = next((each for each in contexts if each["name"] == context), current) if context else current
    return str(((wanted or {}).get("context") or {}).get("namespace") or "default")
