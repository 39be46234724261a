"""An API server small enough to be wrong on purpose: pods are processes of this machine, run by a Python that has no packages.

What it plays is only what the launcher asks of a cluster: create, list, watch, log and delete of pods, and ConfigMaps. Tests tell it to
refuse, to forget its history (410), to be busy, to lose a pod. The real thing is in tests/cluster, with the same body of tests.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = Any
PYTHON = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
PULLED = {"type": "PodReadyToStartContainers", "status": "True"}
SCHEDULED = {"type": "PodScheduled", "status": "True"}


class Denied(Exception):
    """An answer of the server that is an error."""

    def __init__(self, code: int, reason: str, message: str, retry_after: int | None = None) -> None:
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after


class FakeCluster:
    """`node_cpu`: the cores of its one node. `denies(method, path, body)` may raise Denied. `slow` holds back images of that name."""

    def __init__(self, folder: Path, node_cpu: float = 64.0) -> None:
        self.folder, self.node_cpu = folder, node_cpu
        self.lock = threading.Condition()
        self.version = 100
        self.pods: dict[str, Json] = {}
        self.anchors: dict[str, Json] = {}
        self.events: list[tuple[int, str, Json]] = []
        self.forgotten = 0  # events up to this version are no longer known
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.deleted: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.denies: Callable[[str, str, Json], None] = lambda method, path, body: None
        self.answers: Callable[[str, str, Json], Json] = lambda method, path, body: None  # to what is not played here
        self.forwards = 0
        self.secrets: dict[str, dict[str, str]] = {}
        cluster = self

        class Handler(_Handler):
            fake = cluster

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def kubeconfig(self) -> Path:
        """A file for KUBECONFIG."""
        path = self.folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me", "namespace": "team"}}],
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.server.server_address[1]}"}}],
            "users": [{"name": "me", "user": {"token": "secret-token"}}],
        }
        path.write_text(json.dumps(config))
        return path

    def close(self) -> None:
        for process in list(self.processes.values()):
            _kill(process, signal.SIGKILL)
        self.server.shutdown()
        self.server.server_close()

    # ---- what tests do to it ----

    def forget(self) -> None:
        """As after a compaction: whoever watches from an older version is told 410."""
        with self.lock:
            self.forgotten = self.version
            self.lock.notify_all()

    def change(self, name: str, **status: Json) -> None:
        with self.lock:
            pod = copy.deepcopy(self.pods[name])
            pod["status"].update(status)
            self._set(pod)

    def evict(self, name: str) -> None:
        """As the eviction API does: the condition, then the deletion."""
        self.change(
            name,
            conditions=[SCHEDULED, {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "drained"}],
        )
        self.delete(name, 5)

    def delete(self, name: str, grace_s: int) -> None:
        with self.lock:
            pod = self.pods.get(name)
            if pod is None:
                raise Denied(404, "NotFound", f'pods "{name}" not found')
            process = self.processes.get(name)
            over = pod["status"]["phase"] in ("Succeeded", "Failed")
            self.deleted.add(name)
            if process is None or over:
                self._drop(name)
                return
            pod = copy.deepcopy(pod)
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            self._set(pod)
        _kill(process, signal.SIGTERM if grace_s else signal.SIGKILL, group=False)
        if grace_s:
            killer = threading.Timer(grace_s, _kill, (process, signal.SIGKILL))
            killer.daemon = True
            killer.start()

    def secret(self, name: str, keys: dict[str, str]) -> None:
        self.secrets[name] = keys

    def names(self) -> list[str]:
        with self.lock:
            return list(self.pods)

    # ---- objects ----

    def _set(self, pod: Json, kind: str = "MODIFIED") -> None:
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.pods[pod["metadata"]["name"]] = pod
        self.events.append((self.version, kind, pod))
        self.lock.notify_all()

    def _drop(self, name: str) -> None:
        pod = self.pods.pop(name, None)
        if pod is not None:
            self.version += 1
            pod = copy.deepcopy(pod)
            pod["metadata"]["resourceVersion"] = str(self.version)
            self.events.append((self.version, "DELETED", pod))
            self.lock.notify_all()

    def create(self, pod: Json) -> Json:
        name = pod["metadata"]["name"]
        with self.lock:
            if name in self.pods:
                raise Denied(409, "AlreadyExists", f'pods "{name}" already exists')
            pod = copy.deepcopy(pod)
            pod["metadata"].setdefault("uid", f"uid-{self.version}")
            pod["status"] = {"phase": "Pending"}
            self._set(pod, "ADDED")
        threading.Thread(target=self._play, args=(name, pod), daemon=True).start()
        return pod

    def _play(self, name: str, pod: Json) -> None:
        """What a scheduler and a kubelet would do."""
        container = pod["spec"]["containers"][0]
        amount = container["resources"]["requests"]["cpu"]
        cores = float(amount[:-1]) / 1000 if amount.endswith("m") else float(amount)
        if cores > self.node_cpu:
            message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available"
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            self._update(name, conditions=[condition])
            return
        self._update(name, conditions=[SCHEDULED])
        image = container["image"]
        if image.startswith(("missing", "private")):
            said = "not found" if image.startswith("missing") else "401 Unauthorized"
            message = f'failed to pull and unpack image "docker.io/{image}": failed to resolve reference: docker.io/{image}: {said}'
            waiting = {"name": "step", "state": {"waiting": {"reason": "ErrImagePull", "message": message}}}
            self._update(name, conditions=[SCHEDULED, PULLED], containerStatuses=[waiting])
            return
        self._run(name, pod, container)

    def _update(self, name: str, **status: Json) -> None:
        with contextlib.suppress(KeyError):
            self.change(name, **status)

    def _run(self, name: str, pod: Json, container: Json) -> None:
        home = Path(tempfile.mkdtemp(prefix="pod-", dir=self.folder))
        named = [(each["secretRef"]["name"], each.get("prefix", "")) for each in container.get("envFrom", ())]
        lacking = next((secret for secret, _ in named if secret not in self.secrets), None)
        if lacking is not None:
            waiting = {"reason": "CreateContainerConfigError", "message": f'secret "{lacking}" not found'}
            self._update(name, containerStatuses=[{"name": "step", "state": {"waiting": waiting}}])
            return
        env = {prefix + key: value for secret, prefix in named for key, value in self.secrets[secret].items()}
        env |= {each["name"]: each["value"] for each in container["env"]}
        env = {"PATH": os.environ["PATH"], **env, "HOME": str(home), "TMPDIR": str(home / "tmp")}
        command = [PYTHON if container["command"][0] == "python3" else container["command"][0], *container["command"][1:]]
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.processes[name] = process
        if name in self.deleted:
            _kill(process, signal.SIGKILL)
        running = {"name": "step", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
        self._update(name, phase="Running", conditions=[SCHEDULED, PULLED], containerStatuses=[running])
        code = process.wait()
        _kill(process, signal.SIGKILL)
        code = code if code >= 0 else 128 - code
        tail = (self.folder / f"{name}.log").read_text("utf-8", "replace")[-2000:]
        ended: Json = {"exitCode": code, "reason": "Completed" if code == 0 else "Error"}
        if code and tail:
            ended["message"] = tail
        self._update(name, phase="Failed" if code else "Succeeded", containerStatuses=[{"name": "step", "state": {"terminated": ended}}])
        shutil.rmtree(home, ignore_errors=True)
        if name in self.deleted:
            with self.lock:
                self._drop(name)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        self.fake.requests.append((method, self.path))
        try:
            if self.headers.get("authorization") != "Bearer secret-token":
                raise Denied(401, "Unauthorized", "Unauthorized")
            self.fake.denies(method, self.path, body)
            self._serve(method, parts.path, query, body)
        except Denied as denied:
            status = {"kind": "Status", "code": denied.code, "reason": denied.reason, "message": denied.message}
            self._send(status, denied.code, denied.retry_after)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _serve(self, method: str, path: str, query: dict[str, str], body: Json) -> None:
        if (answer := self.fake.answers(method, path, body)) is not None:
            self._send(answer)
            return
        found = re.fullmatch(r"/api/v1/namespaces/([^/]+)/(pods|configmaps|secrets)(?:/([^/]+))?(?:/(\w+))?", path)
        if found is None:
            raise Denied(404, "NotFound", "the server could not find the requested resource")
        namespace, kind, name, sub = found.groups()
        if namespace != "team":
            raise (
                Denied(404, "NotFound", f'namespaces "{namespace}" not found')
                if method == "POST"
                else Denied(403, "Forbidden", "not yours")
            )
        if sub == "portforward":
            self.fake.forwards += 1
            raise Denied(403, "Forbidden", "no forwarding here")
        if kind == "secrets":
            name = body["metadata"]["name"]
            if name in self.fake.secrets:
                raise Denied(409, "AlreadyExists", "already exists")
            self.fake.secrets[name] = {key: base64.b64decode(value).decode() for key, value in body["data"].items()}
            self._send(body, 201)
        elif kind == "configmaps":
            self._anchor(method, name, body)
        elif sub == "log":
            self._log(name, "follow" in query)
        elif method == "POST":
            self._send(body if "dryRun" in query else self.fake.create(body), 201)
        elif method == "DELETE":
            for each in [name] if name else self._selected(query):
                self.fake.delete(each, int(query.get("gracePeriodSeconds", 30)))
            self._send({"kind": "Status", "status": "Success"})
        elif "watch" in query:
            self._watch(query)
        else:
            with self.fake.lock:
                items = [self.fake.pods[each] for each in self._selected(query)]
                answer = json.dumps({"kind": "PodList", "metadata": {"resourceVersion": str(self.fake.version)}, "items": items})
            self._send(json.loads(answer))

    def _selected(self, query: dict[str, str]) -> list[str]:
        label, _, value = query.get("labelSelector", "").partition("=")
        return [name for name, pod in list(self.fake.pods.items()) if not label or pod["metadata"]["labels"].get(label) == value]

    def _anchor(self, method: str, name: str | None, body: Json) -> None:
        anchors = self.fake.anchors
        if method == "POST":
            name = body["metadata"]["name"]
            if name in anchors:
                raise Denied(409, "AlreadyExists", "already exists")
            body["metadata"]["uid"] = f"uid-{name}"
            anchors[name] = body
            self._send(body, 201)
        elif name is None:
            self._send({"items": list(anchors.values()), "metadata": {"resourceVersion": "1"}})
        elif name not in anchors:
            raise Denied(404, "NotFound", "no such anchor")
        else:
            self._send(anchors.pop(name) if method == "DELETE" else anchors[name])

    def _watch(self, query: dict[str, str]) -> None:
        self._begin_chunks()
        version = int(query["resourceVersion"])
        label, _, value = query.get("labelSelector", "").partition("=")
        until = time.monotonic() + min(float(query.get("timeoutSeconds", 5)), 20)
        while time.monotonic() < until:
            with self.fake.lock:
                if version < self.fake.forgotten:
                    self._chunk({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}})
                    break
                new = [(number, kind, pod) for number, kind, pod in self.fake.events if number > version]
                if not new:
                    self.fake.lock.wait(0.5)
                    continue
                lines = [{"type": kind, "object": pod} for _, kind, pod in new if pod["metadata"]["labels"].get(label) == value]
                version = new[-1][0]
            for line in lines:
                self._chunk(line)
        self._end_chunks()

    def _log(self, name: str, follow: bool) -> None:
        path, place = self.fake.folder / f"{name}.log", 0
        self._begin_chunks()
        while True:
            process = self.fake.processes.get(name)
            over = process is not None and process.poll() is not None
            data = path.read_bytes()[place:] if path.exists() else b""
            if data:
                self._chunk_bytes(data)
                place += len(data)
            elif over or not follow:
                break
            else:
                time.sleep(0.02)
        self._end_chunks()

    def _begin_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, value: Json) -> None:
        self._chunk_bytes(json.dumps(value).encode() + b"\n")

    def _chunk_bytes(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end_chunks(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, value: Json, code: int = 200, retry_after: int | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(data)


def _kill(process: subprocess.Popen[bytes], number: int, group: bool = True) -> None:
    with contextlib.suppress(OSError):
        if group:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)
