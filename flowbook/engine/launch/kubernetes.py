"""Attempts as pods of a cluster: create one, watch it, tell how it ended.

Like the local launcher: an order goes in, frames come out, how the pod ended is an Exit; whether the attempt succeeded is told by its
COMMIT alone. What is different lies in the nature of a pod: the order is an object of the store, and so is what the attempt left
(worker/pod.py). A pod of the attempt's name is the attempt's, whoever made it: so a run whose engine died is gone on with.

One watch for all pods of a run and namespace; pods are created no faster than RATE; streams (logs, frames) for at most STREAMS pods. Streams
are hints: without any, pods are started, watched, stopped and told of just as well. All blocking calls are in threads.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from flowbook.engine.launch import podspec, podstatus
from flowbook.engine.launch.apiserver import Api, PodWatch, Refused
from flowbook.engine.launch.local import Attempt, Exit, Frame
from flowbook.engine.launch.podspec import Ask, Cluster
from flowbook.engine.launch.podstatus import Waits
from flowbook.errors import ClusterError, StoreError, StoreMissing
from flowbook.store import layout, trust
from flowbook.store.base import Store

Json = Any
OnFrame = Callable[[Frame], None]
T = TypeVar("T")

RATE, BURST = 40.0, 20  # pods created a second
WORKERS = 12  # requests at once
STREAMS = 32
LISTEN_S = 1.0  # after a container has started: its worker is not up before, and a task that is short has then ended
RECONNECT_S = 2.0  # at most, between two tries to hear a pod: at first its worker is not up yet
SNAPSHOT_S = 5.0  # between two looks at stored cards, where they cannot come live
IMAGE_S = 120.0  # for which an image may be refused before the attempt is given up
LOOK_S = 0.5  # between two looks at pods that nobody follows, and that are to go
QUOTA_S = 5.0  # between two tries while a quota is used up
EVENTS_S = 2.0  # after which the events of a pod are looked at that its node does not get ready; then ever more rarely
LEAVING_S = 30.0  # beyond its grace, for which a pod may be on its way out; then its node is taken for dead
KEPT_PODS = 500  # finished ones of a run; more are removed as it goes
RUNTIME_S = 6 * 3600.0  # after which the runtime is sent again, or made young: nothing but pods refers to it
LOG_BYTES = 10_000_000  # of output taken from the store to be shown; the whole of it stays there
NOT_BEGUN = 78  # the exit code with which boot.py gives up


class Pods:
    """The launcher of one cluster, for all runs of an engine.

    `troubled` are told what makes the cluster wait, "" when it is over. `api` is given by tests; else it is made when first needed.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        environ: Mapping[str, str] | None = None,
        *,
        api: Api | None = None,
        streams: int = STREAMS,
        grace_s: float = podspec.GRACE_S,
    ) -> None:
        self.store, self.cluster = store, cluster
        self.troubled: set[Callable[[str], None]] = set()
        self.stop_on_cancel = True  # False: whoever goes on with the run finds its pods
        self.spared: set[tuple[str, str]] = set()  # runs that another engine goes on with: their pods are its own
        self._environ, self._api, self._grace_s = environ, api, grace_s
        self._threads = ThreadPoolExecutor(WORKERS, "flowbook-pods")
        self._streams = threading.BoundedSemaphore(streams)
        self._connecting = asyncio.Lock()
        self._asking = asyncio.Semaphore(4)  # for events; a thousand pods that wait for their images shall not hold up creates
        self._watches: dict[tuple[str, str], Watch] = {}  # (label of a run, namespace)
        self._runtime: str | None = None
        self._runtime_until = 0.0
        self._anchors: dict[tuple[str, str], asyncio.Future[Json]] = {}
        self._keys: dict[str, asyncio.Future[str | None]] = {}  # namespace → the Secret that holds the project's key
        self._due = 0.0  # when the next pod may be created, by the loop's clock
        self._ended: dict[str, list[tuple[str, str]]] = {}  # label of a run → (namespace, pod) that are over

    # ---- one attempt ----------------------------------------------------------------------------------------------------

    async def run(self, attempt: Attempt, on_frame: OnFrame = lambda frame: None) -> Exit:
        """One attempt to its end. Cancelling stops the pod (SIGTERM, then SIGKILL) and is then passed on."""
        try:
            return await self._run(attempt, on_frame)
        except Refused as refused:
            return Exit("lost", message=podstatus.refused(refused.code, refused.body, "use pods", self.cluster.namespace or "?").message)
        except ClusterError as error:
            return Exit("lost", message=str(error))

    async def _run(self, attempt: Attempt, on_frame: OnFrame) -> Exit:
        api = await self._connect()
        ask = await self._ask(api, attempt)
        namespace = podspec.namespace_of(ask, self.cluster) or api.namespace
        label = podspec.run_label(ask.store, ask.flow, ask.run)
        pod = Pod(self, api, namespace, podspec.pod_name(ask), ask, attempt, on_frame)
        watch = self._watch(api, label, namespace)
        watch.pods[pod.name] = pod
        try:
            refused = await self._create(pod, label)
            if refused is not None:
                return refused
            return await pod.to_its_end()
        except asyncio.CancelledError:
            if self.stop_on_cancel and (ask.flow, ask.run) not in self.spared:
                await pod.stop()
            raise
        finally:
            pod.close()
            del watch.pods[pod.name]
            self._ended.setdefault(label, []).append((namespace, pod.name))
            self._trim(api, label)

    async def _connect(self) -> Api:
        async with self._connecting:
            if self._api is None:
                told = self._told_from_threads(self._trouble)
                self._api = await asyncio.to_thread(Api.connect, self.cluster.context, self._environ, trouble=told)
            return self._api

    def _trouble(self, message: str) -> None:
        for tell in list(self.troubled):
            tell(message)

    def _told_from_threads(self, tell: Callable[[str], None]) -> Callable[[str], None]:
        loop = asyncio.get_running_loop()

        def told(message: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
                loop.call_soon_threadsafe(tell, message)

        return told

    async def _ask(self, api: Api, attempt: Attempt) -> Ask:
        """The attempt as a pod's ask; its order and flowbook's runtime are in the store when this returns, the project's key in the cluster."""
        order = dict(attempt.order)
        index, part, number = tuple(order.get("index") or ()), order.get("part") or "body", int(order.get("attempt") or 0)
        key = layout.order(order["flow"], order["run"], order["step"], index, number, part)
        kept = {name: value for name, value in order.items() if name not in ("cwd", "sys_path")}
        data = await self.call(trust.sign, self.store, key, kept | {"store": place_of(self.store)})
        if self._runtime is None or time.monotonic() > self._runtime_until:
            self._runtime, self._runtime_until = await self.call(self._put_runtime), time.monotonic() + RUNTIME_S
        await self.call(self.store.create, key, data)
        ask = ask_of(attempt, place_of(self.store), self._runtime, key)
        if self.store.key_file is None:
            return ask
        namespace = podspec.namespace_of(ask, self.cluster) or api.namespace
        if namespace not in self._keys:
            self._keys[namespace] = asyncio.ensure_future(self.call(_make_key, api, namespace, self.store))
        return dataclasses.replace(ask, key_secret=await asyncio.shield(self._keys[namespace]))

    def _put_runtime(self) -> str:
        from flowbook.engine.launch.runtime import runtime

        return self.store.put_blob([runtime()])

    async def call(self, act: Callable[..., T], *args: Any) -> T:
        """In a thread of the launcher's own."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, act, *args)

    # ---- creating -------------------------------------------------------------------------------------------------------

    async def _create(self, pod: Pod, label: str) -> Exit | None:
        """Make the pod, or find that it is there; an Exit if it is refused for good."""
        body = podspec.manifest(pod.ask, self.cluster, await self._anchor(pod, label))
        path = f"/api/v1/namespaces/{pod.namespace}/pods"
        waited_since = time.monotonic()
        while True:
            await self._pace()
            creating = asyncio.ensure_future(self.call(pod.api.create, path, body))
            try:
                await asyncio.shield(creating)
                return None
            except asyncio.CancelledError:
                with contextlib.suppress(ClusterError):
                    await creating  # what was begun is known to be there or not, so that it can be removed
                raise
            except Refused as refused:
                if refused.code == 409 and "AlreadyExists" in refused.body:
                    return None  # of this attempt, made by an engine before this one, or by a create whose answer was lost
                if refused.code == 409:
                    continue  # a conflict of the server's own
                told = podstatus.refused(refused.code, refused.body, "create pods", pod.namespace)
                if not told.waits or time.monotonic() - waited_since > self.cluster.pending_s:
                    return Exit("lost", message=told.message)
                pod.tell("queued", told.message)
                await asyncio.sleep(QUOTA_S)

    async def _pace(self) -> None:
        now = asyncio.get_running_loop().time()
        self._due = max(self._due + 1 / RATE, now - BURST / RATE)
        if self._due > now:
            await asyncio.sleep(self._due - now)

    async def _anchor(self, pod: Pod, label: str) -> Mapping[str, str] | None:
        """The object with whose end all pods of a run go; None where this account may not make one."""
        key = (label, pod.namespace)
        if key not in self._anchors:
            self._anchors[key] = asyncio.ensure_future(self.call(_make_anchor, pod.api, pod.namespace, label, pod.ask))
        made: Json = await asyncio.shield(self._anchors[key])
        return None if made is None else {"apiVersion": "v1", "kind": "ConfigMap", "name": label, "uid": made["metadata"]["uid"]}

    # ---- watching -------------------------------------------------------------------------------------------------------

    def _watch(self, api: Api, label: str, namespace: str) -> Watch:
        watch = self._watches.get((label, namespace))
        if watch is None or watch.error is not None:
            watch = self._watches[label, namespace] = Watch(api, label, namespace)
        return watch

    # ---- the end --------------------------------------------------------------------------------------------------------

    def _trim(self, api: Api, label: str) -> None:
        """Remove the oldest finished pods of a large run, so that a namespace is not filled with them."""
        ended = self._ended[label]
        while len(ended) > KEPT_PODS:
            namespace, name = ended.pop(0)
            self._threads.submit(_quietly, api.delete, f"/api/v1/namespaces/{namespace}/pods/{name}")

    async def leave_run(self, flow: str, run: str, ended: bool) -> None:
        """No attempt of this run is followed any more. If it has ended, its pods and their anchor are removed."""
        label = podspec.run_label(place_of(self.store), flow, run)
        places = [key for key in self._watches if key[0] == label]
        for key in places:
            self._watches.pop(key).close()
        self._ended.pop(label, None)
        for key in places:
            anchor = self._anchors.pop(key, None)
            if ended and self._api is not None:
                await self.call(_quietly, _remove_run, self._api, key[1], label, anchor is not None)

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def place_of(store: Store) -> dict[str, Json]:
    """Where the store is, for pods, who have credentials of their own, and the project's key from a Secret."""
    found = {name: value for name, value in store.describe().items() if name not in ("profile", "key_file")}
    return found | ({"key_file": podspec.KEY_FILE} if store.key_file is not None else {})


def ask_of(attempt: Attempt, store: Mapping[str, Json], runtime: str = "", order_key: str = "") -> Ask:
    """What an attempt asks of a cluster; `attempt.pod` holds what its step says of it (see `pod_of_step`)."""
    order, told = attempt.order, dict(attempt.pod or {})
    return Ask(
        flow=order["flow"],
        run=order["run"],
        step=order["step"],
        index=tuple(order.get("index") or ()),
        part=order.get("part") or "body",
        attempt=int(order.get("attempt") or 0),
        store=store,
        runtime=runtime,
        order=order_key,
        resources=attempt.resources,
        timeout_s=attempt.timeout_s,
        env=attempt.step_env,
        **told,
    )


class Watch:
    """The watch of a run's pods in one namespace, and who waits for which."""

    def __init__(self, api: Api, label: str, namespace: str) -> None:
        self.pods: dict[str, Pod] = {}
        self.error: ClusterError | None = None
        self._loop = asyncio.get_running_loop()
        self.namespace = namespace
        self._watch = PodWatch(api, namespace, f"{podspec.LABEL}/run={label}", self._heard, self._failed)

    @property
    def relists(self) -> int:
        return self._watch.relists

    def close(self) -> None:
        self._watch.close()

    def _heard(self, found: dict[str, Json], whole: bool) -> None:
        slim = {name: None if pod is None else _slim(pod) for name, pod in found.items()}
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._take, slim, whole)

    def _failed(self, error: ClusterError) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._fail, error)

    def _take(self, found: dict[str, Json], whole: bool) -> None:
        for name, pod in list(self.pods.items()):
            if name in found or (whole and pod.seen is not None):
                pod.hear(found.get(name))

    def _fail(self, error: ClusterError) -> None:
        if isinstance(error, Refused):
            told = podstatus.refused(error.code, error.body, "watch pods", self.namespace)
            error = ClusterError(told.message)
        self.error = error
        for pod in self.pods.values():
            pod.fail(error)


def _slim(pod: Json) -> Json:
    """Without what nobody here reads, which is most of it."""
    spec = pod.get("spec", {})
    kept = {
        "affinity": spec.get("affinity", {}),
        "nodeSelector": spec.get("nodeSelector", {}),
        "nodeName": spec.get("nodeName"),
        "containers": [
            {"name": each.get("name"), "image": each.get("image"), "resources": each.get("resources", {})}
            for each in spec.get("containers", ())
        ],
    }
    metadata = {name: pod["metadata"].get(name) for name in ("name", "uid", "deletionTimestamp")}
    return {"metadata": metadata, "spec": kept, "status": pod.get("status", {})}


class Pod:
    """One attempt's pod from its creation to its end. All methods belong to the loop's thread."""

    def __init__(self, launcher: Pods, api: Api, namespace: str, name: str, ask: Ask, attempt: Attempt, on_frame: OnFrame) -> None:
        self.launcher, self.api, self.namespace, self.name, self.ask, self.attempt = launcher, api, namespace, name, ask, attempt
        self.seen: Json = None  # the pod as it last was
        self.gone = False
        self.phase, self.why = "", ""
        self._on_frame = on_frame
        self._error: ClusterError | None = None
        self._changed = asyncio.Event()
        self._spoken = False  # the worker tells its phases itself
        self._failed_told = False
        self._live: Live | None = None
        self._held: Waits | None = None
        self._looking: asyncio.Task[None] | None = None
        self.tell("queued")

    # ---- what is heard ----

    def hear(self, pod: Json) -> None:
        """The watch has news; None: it is gone."""
        if pod is None:
            self.gone = True
        else:
            self.seen = pod
        self._changed.set()

    def fail(self, error: ClusterError) -> None:
        self._error = error
        self._changed.set()

    def tell(self, phase: str, why: str = "") -> None:
        if (phase, why) != (self.phase, self.why):
            self.phase, self.why = phase, why
            self._on_frame({"f": "phase", "phase": phase, **({"why": why} if why else {})})

    def frame(self, frame: Frame) -> None:
        """A frame of the worker, from its stream."""
        if frame.get("f") == "phase":
            self._spoken = True
            self.phase, self.why = str(frame.get("phase")), ""
        if frame.get("f") == "failed":
            self._failed_told = True
        if frame.get("f") in ("phase", "failed", "display", "card"):
            self._on_frame(frame)

    # ---- following ----

    async def to_its_end(self) -> Exit:
        """Until the pod is over, gone, given up, or beyond its time."""
        waiting_since: dict[str, float] = {}
        started_at: float | None = None
        leaving_at: float | None = None
        while True:
            self._changed.clear()
            now = time.monotonic()
            if self._error is not None:
                raise self._error
            if self.gone or (self.seen is not None and podstatus.is_over(self.seen)):
                return await self._over()
            deadlines: list[float] = []
            if self.seen is not None:
                waits = podstatus.waits_for(self.seen) or self._held_up()
                self._tell_phase(waits)
                given_up = self._given_up(waits, waiting_since, now, deadlines)
                if given_up is not None:
                    await self.remove()
                    return given_up
                if podstatus.container_started(self.seen):
                    started_at = started_at or now
                    if now >= started_at + LISTEN_S:
                        self._follow_live()
                    else:
                        deadlines.append(started_at + LISTEN_S)
                if podstatus.is_leaving(self.seen):
                    leaving_at = leaving_at or now
                    deadlines.append(leaving_at + podspec.GRACE_S + LEAVING_S)
            if leaving_at is not None and now >= leaving_at + podspec.GRACE_S + LEAVING_S:
                return Exit("evicted", message="the pod was to go and never did: its node does not answer", again=True)
            if started_at is not None and self.attempt.timeout_s is not None:
                if now >= started_at + self.attempt.timeout_s:
                    await self.stop()
                    return Exit("timeout")
                deadlines.append(started_at + self.attempt.timeout_s)
            await self._news(min(deadlines, default=None), now)

    async def _news(self, deadline: float | None, now: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), None if deadline is None else max(0.0, deadline - now))

    def _tell_phase(self, waits: Waits | None) -> None:
        phase = podstatus.phase_of(self.seen)
        if not (phase == "starting" and self._spoken):
            self.tell(phase, waits.why if waits is not None else "")

    def _held_up(self) -> Waits | None:
        """What its node says of a pod that does not get ready there, such as a volume that is not: that stands in events only."""
        if podstatus.phase_of(self.seen) != "scheduled":
            self._stop_looking()
        elif self._looking is None:
            self._looking = asyncio.create_task(self._look_at_events())
        return self._held

    async def _look_at_events(self) -> None:
        path, delay = f"/api/v1/namespaces/{self.namespace}/events", EVENTS_S
        query = {"fieldSelector": f"involvedObject.uid={self.seen['metadata']['uid']},type=Warning"}
        with contextlib.suppress(ClusterError):  # without the right to read events it is a hint less
            while True:
                await asyncio.sleep(delay)
                async with self.launcher._asking:
                    found = await self.launcher.call(self.api.get, path, query)
                self._held = podstatus.held_up(found["items"])
                self._changed.set()
                delay = min(2 * delay, 30.0)

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._held = self._looking = None

    def _given_up(self, waits: Waits | None, since: dict[str, float], now: float, deadlines: list[float]) -> Exit | None:
        """An Exit if it is no use to wait any longer."""
        if waits is None:
            since.clear()
            return None
        begun = since.setdefault(waits.kind, now)
        patience = IMAGE_S if waits.brief else self.launcher.cluster.pending_s
        if waits.hopeless:
            return Exit("lost", message=waits.why)
        if now >= begun + patience:
            setting = "" if waits.brief else " (kubernetes_pending)"
            return Exit("lost", message=f"{waits.why}. It has waited for {patience:.0f} s{setting}, and is given up")
        deadlines.append(begun + patience)
        return None

    # ---- the end ----

    async def _over(self) -> Exit:
        """From what the pod left in the store, and what the cluster says of it."""
        ended = podstatus.exit_of(self.seen or {"metadata": {}}, deleted=self.gone)
        if self.seen is None:
            ended = Exit("evicted", message="the pod was deleted before it was seen", again=True)
        told = await self._told_end()
        if self._live is not None:
            self._live.close()
            await self._live.finished(2.0)
        if told is None:
            return await self._unsaid(ended)
        if told.get("failed") and not self._failed_told:
            self._on_frame({"f": "failed", "error": told["failed"]})
        kept = await self._take_output(int(told.get("output") or 0))
        if ended.reason not in ("ended", "killed"):
            return dataclasses.replace(ended, kept=kept)
        code = int(told.get("code") or 0)
        if told.get("oom"):
            return Exit("oom", code, kept=kept)
        if code < 0:
            return Exit("killed", code, str(told.get("signal")), kept=kept)
        return Exit("ended", code, kept=kept)

    async def _told_end(self) -> Json:
        """What the worker stored of the attempt's end; None if it could not."""
        ask = self.ask
        key = layout.end(ask.flow, ask.run, ask.step, ask.index, ask.attempt, ask.part)
        try:
            return json.loads(await self.launcher.call(self.launcher.store.get, key))
        except (StoreMissing, ValueError):
            return None
        except StoreError:
            return None  # the scheduler asks the store for the COMMIT next, and insists

    async def _take_output(self, size: int) -> bool:
        """Show what was printed to its end. True: the store has it already, as the worker wrote it."""
        have = _size(self.attempt.output)
        if size and have != size and size <= LOG_BYTES:
            ask = self.ask
            key = layout.output(ask.flow, ask.run, ask.step, ask.index, ask.attempt, ask.part)
            with contextlib.suppress(StoreError, OSError):
                data = await self.launcher.call(self.launcher.store.get, key)
                await self.launcher.call(self.attempt.output.write_bytes, data)
        return size > 0

    async def _unsaid(self, ended: Exit) -> Exit:
        """The worker could not say anything: what it printed is asked of the cluster."""
        if not self.gone and not _size(self.attempt.output):
            with contextlib.suppress(ClusterError, OSError):
                await self.launcher.call(self._copy_log)
        if ended.reason == "ended":
            last = _last_words(self.attempt.output) or ended.message
            if ended.code == NOT_BEGUN:
                return Exit("lost", ended.code, message=_printed(self.attempt.output).rpartition("flowbook: ")[2].strip() or last)
            return Exit(
                "lost",
                ended.code,
                message=f"the worker ended (exit code {ended.code}) before it could say how: {last}",
                again=ended.code == 0,
            )
        return ended

    def _copy_log(self) -> None:
        stream = self.api.open(f"{self._path}/log", {"container": podspec.CONTAINER, "limitBytes": LOG_BYTES})
        with self.attempt.output.open("ab") as file:
            for chunk in stream.chunks():
                file.write(chunk)

    # ---- stopping ----

    @property
    def _path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    async def remove(self, grace_s: float = 0) -> None:
        with contextlib.suppress(ClusterError):
            await self.launcher.call(self.api.delete, self._path, {"gracePeriodSeconds": int(grace_s)})

    async def stop(self) -> None:
        """SIGTERM, the grace, SIGKILL; back when it is over, or when it surely should be."""
        grace_s = self.launcher._grace_s
        await self.remove(grace_s)
        until = time.monotonic() + grace_s + 5
        while not self.gone and not (self.seen is not None and podstatus.is_over(self.seen)) and time.monotonic() < until:
            self._changed.clear()
            if self.gone or self._error is not None or self.seen is None:
                break  # never seen: it was removed before it ran
            await self._news(until, time.monotonic())

    # ---- live ----

    def _follow_live(self) -> None:
        if self._live is None and self.launcher._streams.acquire(blocking=False):
            self._live = Live(self, self.launcher._streams.release)

    def close(self) -> None:
        self._stop_looking()
        if self._live is not None:
            self._live.close()


class Live:
    """The streams of a running pod, in two threads: its log into the output file, and the frames of its worker."""

    def __init__(self, pod: Pod, released: Callable[[], None]) -> None:
        self._pod, self._loop = pod, asyncio.get_running_loop()
        self._closed = threading.Event()
        self._open: list[Any] = []
        self._left = 2
        self._lock = threading.Lock()
        self._released = released
        self._threads = [
            threading.Thread(target=self._guard, args=(act,), name=f"flowbook-{act.__name__}", daemon=True)
            for act in (self._log, self._frames)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """The pod is over: the log is read to its end, frames come no more."""
        self._closed.set()

    async def finished(self, timeout_s: float) -> None:
        """Until the log is read, but not for ever."""
        await asyncio.to_thread(self._threads[0].join, timeout_s)
        for stream in self._open:
            with contextlib.suppress(OSError):
                stream.close()

    def _guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (OSError, ClusterError, ValueError):
            pass  # a hint less
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._released()

    def _log(self) -> None:
        """What the container prints; begun anew where the connection breaks, without what is there already."""
        path, have, delay = f"{self._pod._path}/log", 0, 0.5
        with self._pod.attempt.output.open("ab") as file:
            have = file.tell()
            while True:
                try:
                    stream = self._pod.api.open(path, {"container": podspec.CONTAINER, "follow": "true"}, None)
                    self._open.append(stream)
                    for chunk in _without(stream.chunks(), have):
                        file.write(chunk)
                        file.flush()
                        have += len(chunk)
                    return
                except OSError:
                    if self._closed.wait(delay):
                        return
                    delay = min(2 * delay, 15)

    def _frames(self) -> None:
        delay, shown = 0.2, 0
        while not self._closed.is_set():
            try:
                connection = self._pod.api.forward(self._pod.namespace, self._pod.name, podspec.PORT)
                self._open.append(connection)
                count = 0  # of rich output: a connection begins with all there was, so what was heard before is passed over
                with connection.makefile("rb") as lines:
                    for line in lines:
                        frame = json.loads(line)
                        if frame.get("f") == "display" and not frame.get("update"):
                            count += 1
                            if count <= shown:
                                continue
                            shown = count
                        self._tell(frame)
                        delay = 0.2
                        if frame.get("f") == "end":
                            return
            except Refused:
                self._snapshots()  # no right to forward ports
                return
            except (OSError, ValueError):
                pass
            if self._closed.wait(delay):
                return
            delay = min(2 * delay, RECONNECT_S)

    def _snapshots(self) -> None:
        """Cards as the worker stores them, every some seconds."""
        ask, store = self._pod.ask, self._pod.launcher.store
        prefix = layout.card_prefix(ask.flow, ask.run, ask.step, ask.index, ask.attempt)
        shown: dict[str, int] = {}
        while not self._closed.wait(SNAPSHOT_S):
            with contextlib.suppress(StoreError, ValueError, KeyError, TypeError):  # looked at again in a moment
                for key in store.list(prefix):
                    card = json.loads(store.get(key))
                    if card["n"] > shown.get(key, -1):
                        shown[key] = card["n"]
                        self._tell({"f": "card", "id": card["id"], "v": card["n"], "card": card})

    def _tell(self, frame: Frame) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._pod.frame, frame)


def _without(chunks: Iterator[bytes], have: int) -> Iterator[bytes]:
    """What comes after the first bytes."""
    for chunk in chunks:
        if have >= len(chunk):
            have -= len(chunk)
            continue
        yield chunk[have:]
        have = 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _printed(path: Path) -> str:
    """The end of what was printed."""
    try:
        return path.read_bytes()[-4000:].decode("utf-8", "replace")
    except OSError:
        return ""


def _last_words(path: Path) -> str:
    lines = _printed(path).strip().splitlines()
    return lines[-1] if lines else ""


# ---- objects of a run ---------------------------------------------------------------------------------------------------


def _make_key(api: Api, namespace: str, store: Store) -> str | None:
    """A Secret with the project's key, of a name that follows from the key; None where this account may not make one.

    Then the Secret of the setting kubernetes_secret has to hold it, and a pod without it says so.
    """
    key = trust.project_key(store, make=True)
    name = f"flowbook-key-{hashlib.sha256(b'the name of ' + key).hexdigest()[:16]}"
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": dict(podspec.MANAGED)},
        "data": {trust.VARIABLE: base64.b64encode(key).decode()},
        "immutable": True,
    }
    try:
        api.create(f"/api/v1/namespaces/{namespace}/secrets", body)
    except Refused as refused:
        return name if refused.code == 409 else None
    return name


def _make_anchor(api: Api, namespace: str, label: str, ask: Ask) -> Json:
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    metadata = {
        "name": label,
        "labels": {**podspec.MANAGED, f"{podspec.LABEL}/run": label},
        "annotations": {
            name: value for name, value in podspec.annotations_of(ask).items() if name.rpartition("/")[2] in ("flow", "run", "store")
        },
    }
    try:
        return api.create(path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})
    except Refused as refused:
        if refused.code != 409:
            return None  # no right to, or no namespace; the latter the pod's own create tells
    try:
        return api.get(f"{path}/{label}")
    except ClusterError:
        return None


def _remove_run(api: Api, namespace: str, label: str, anchored: bool) -> None:
    """All pods of a run, at once where that is allowed, else one by one; then the anchor, with which any others go."""
    path = f"/api/v1/namespaces/{namespace}/pods"
    query = {"labelSelector": f"{podspec.LABEL}/run={label}"}
    try:
        api.delete(path, query)
    except Refused as refused:
        if refused.code != 403:
            raise
        for pod in api.get(path, query)["items"]:
            api.delete(f"{path}/{pod['metadata']['name']}")
    if anchored:
        api.delete(f"/api/v1/namespaces/{namespace}/configmaps/{label}", {"propagationPolicy": "Background"})


def running(api: Api, store: Store, flow: str, run: str, namespace: str) -> list[str]:
    """The names of a run's pods that are not over. Raises ClusterError."""
    query = {"labelSelector": f"{podspec.LABEL}/run={podspec.run_label(place_of(store), flow, run)}"}
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods", query)["items"]
    return [pod["metadata"]["name"] for pod in pods if not podstatus.is_over(pod)]


def remove_run(api: Api, store: Store, flow: str, run: str, namespace: str) -> None:
    """Remove the pods of a run that nobody follows, and wait until none of them runs any more. Raises ClusterError."""
    label = podspec.run_label(place_of(store), flow, run)
    _remove_run(api, namespace, label, anchored=False)
    _quietly(api.delete, f"/api/v1/namespaces/{namespace}/configmaps/{label}", {"propagationPolicy": "Background"})
    until = time.monotonic() + podspec.GRACE_S + LEAVING_S
    while (left := running(api, store, flow, run, namespace)) and time.monotonic() < until:
        time.sleep(LOOK_S)
    if left:
        raise ClusterError(f"pod {left[0]} of run {run} was to go and never did: its node does not answer")


def _quietly(act: Callable[..., None], *args: Any) -> None:
    """What is only tidying up fails in silence: `%flow gc` tidies again."""
    with contextlib.suppress(ClusterError):
        act(*args)


@dataclasses.dataclass
class Swept:
    """What a sweep removed (names of pods), and the open runs that nobody here drives: (flow, run) → how many of its pods are not over."""

    removed: list[str] = dataclasses.field(default_factory=list)
    left: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)


def sweep(api: Api, store: Store, namespace: str, *, dry_run: bool = False, driven: Collection[tuple[str, str]] = ()) -> Swept:
    """Remove pods and anchors of runs of this store that have ended, or are there no more. `driven`: the runs that have an engine.

    Of open runs without one only those pods go that are over and whose result is in the store: somebody may go on with the run.
    Raises ClusterError, StoreError.
    """
    mine = json.dumps(place_of(store), sort_keys=True)
    over: dict[tuple[str, str], bool] = {}
    swept = Swept()
    for kind in ("pods", "configmaps"):
        path = f"/api/v1/namespaces/{namespace}/{kind}"
        for each in api.get(path, {"labelSelector": "app.kubernetes.io/managed-by=flowbook"})["items"]:
            notes = each["metadata"].get("annotations") or {}
            if notes.get(f"{podspec.LABEL}/store") != mine:
                continue
            run = (str(notes.get(f"{podspec.LABEL}/flow")), str(notes.get(f"{podspec.LABEL}/run")))
            if run not in over:
                over[run] = is_over(store, *run)
            if not over[run]:
                if run in driven:
                    continue
                waits = kind == "pods" and not podstatus.is_over(each)
                swept.left[run] = swept.left.get(run, 0) + waits
                if waits or kind != "pods" or not _has_result(store, notes):
                    continue
            name = each["metadata"]["name"]
            swept.removed += [name] if kind == "pods" else []
            if not dry_run:
                api.delete(f"{path}/{name}")
    return swept


def _has_result(store: Store, notes: Mapping[str, Json]) -> bool:
    """Whether the task of a pod with these annotations has its COMMIT."""
    flow, run, step, task = (str(notes.get(f"{podspec.LABEL}/{name}")) for name in ("flow", "run", "step", "task"))
    return store.exists(f"{layout.run_prefix(flow, run)}{step}/{task}.COMMIT")


def is_over(store: Store, flow: str, run: str) -> bool:
    """Whether a run has ended, or is there no more. Raises StoreError."""
    from flowbook.engine import events

    if not store.exists(layout.spec(flow, run)):
        return True
    last = None
    for key in store.list(layout.log_prefix(flow, run)):
        last = key
    return last is not None and any(event["e"] == "run_ended" for event in events.unbatch(store.get(last), last))
