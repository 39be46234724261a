"""One small pod that does what a step's pod does: it is the pod of a step, made by the launcher of steps.

So all is tried that a run would meet: the image, the Secret, flowbook's runtime from the store, the project's key, results to the store.
Its flow is in a store of its own below `probes/` of the store, and both are removed.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowbook.engine.doctor.core import Found
from flowbook.engine.launch import podspec
from flowbook.engine.launch.apiserver import Api
from flowbook.engine.launch.kubernetes import Pods
from flowbook.engine.launch.local import Attempt, Exit, Frame
from flowbook.errors import FlowbookError, StoreError
from flowbook.spec.amounts import seconds_text
from flowbook.spec.flow import to_json
from flowbook.store import layout, results, trust
from flowbook.store.base import Store, open_store

if TYPE_CHECKING:
    from flowbook.engine.doctor.cluster import Look

TRIAL_S = 300.0  # for a node to be brought and an image to be pulled; kubernetes_pending may be less
BODY_S = 120.0  # for what the pod itself does
GRACE_S = 2.0
OTHER_IMAGE = "`--with kubernetes:image=…` tries another here; for runs it is set by kubernetes_image (FLOWBOOK_KUBERNETES_IMAGE)."
STARTED = ("starting", "importing", "running", "saving")  # its container runs


class Heard:
    """What the pod's launcher tells: since when it is in which phase, why it waits, and its error."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.begun = time.monotonic()
        self.phases: dict[str, float] = {}
        self.phase, self.why = "queued", ""
        self.failed: Any = None

    def __call__(self, frame: Frame) -> None:
        if frame.get("f") == "phase":
            self.phase, self.why = str(frame.get("phase")), str(frame.get("why") or "")
            self.phases.setdefault(self.phase, time.monotonic() - self.begun)
            self._say(f"the pod is {self.phase}" + (f": {self.why}" if self.why else ""))
        elif frame.get("f") == "failed":
            self.failed = frame.get("error")

    @property
    def started_s(self) -> float | None:
        return next((self.phases[phase] for phase in STARTED if phase in self.phases), None)


def trial(look: Look) -> Iterator[Found]:
    """Start it, and tell what came of it."""
    heard = Heard(look.say)
    try:
        with _store(look) as store:
            _write(store, look)
            ended = asyncio.run(_run(look, store, heard))
            yield from _told(look, store, heard, ended)
    except FlowbookError as error:
        yield Found("bad", f"no pod could be tried: {error}")


@contextmanager
def _store(look: Look) -> Iterator[Store]:
    """A store inside of the store, for this flow alone; gc removes it if this process is killed."""
    folder = layout.probe(look.name, 0).rpartition("/")[0]
    place = dict(look.store.describe())
    inner = "root" if place["kind"] == "files" else "prefix"
    place[inner] = f"{place.get(inner) or ''}/{folder}".lstrip("/" if inner == "prefix" else "")
    try:
        yield open_store(place)
    finally:
        try:
            look.store.delete_folder(folder)
        except StoreError:
            pass  # it goes with the garbage


def _write(store: Store, look: Look) -> None:
    spec, key = look.spec, layout.spec(look.spec.flow, look.spec.run)
    store.create(key, trust.sign(store, key, to_json(spec)))


async def _run(look: Look, store: Store, heard: Heard) -> Exit | None:
    """How the pod ended; None if it did not within its time. It is gone then."""
    spec, options, cluster = look.spec, look.step.options, look.cluster
    order: dict[str, Any] = {"store": store.describe(), "flow": spec.flow, "run": spec.run, "step": look.step.name, "index": []}
    order |= {"part": "body", "attempt": 0, "inputs": {}, "joins": {}, "item": None, "failures": [], "ids": [], "cwd": "", "sys_path": []}
    api = await asyncio.to_thread(Api.connect, cluster.context, look.environ, patience_s=60.0)
    pods = Pods(store, cluster, look.environ, api=api, grace_s=GRACE_S)
    with tempfile.TemporaryDirectory(prefix="flowbook-doctor-") as folder:
        output = Path(folder) / "output"
        attempt = Attempt(order, output, {}, {}, podspec.asked(options), BODY_S, podspec.pod_of(options, spec.python))
        try:
            async with asyncio.timeout(min(TRIAL_S, cluster.pending_s + BODY_S)):
                return await pods.run(attempt, heard)
        except TimeoutError:
            return None
        finally:
            await pods.leave_run(spec.flow, spec.run, ended=True)
            pods.close()


def _told(look: Look, store: Store, heard: Heard, ended: Exit | None) -> Iterator[Found]:
    seconds = time.monotonic() - heard.begun
    image = podspec.image_of(look.ask, look.cluster)
    if heard.started_s is not None:
        yield Found("ok", f"a pod started from the image {image} after {seconds_text(heard.started_s)}")
    if ended is None:
        waits = f": {heard.why}" if heard.why else ""
        remedy = "" if waits else "Pods may not reach the store's address, or the node is busy: try again, or ask who runs the cluster."
        yield Found("bad", f"the pod was removed after {seconds_text(seconds)}, still {heard.phase}{waits}", remedy)
        return
    commit = results.read_commit(store, look.spec.flow, look.spec.run, look.step.name, ())
    if commit is None:
        why = _why(heard, ended)
        yield Found("bad", f"the pod failed: {why}", OTHER_IMAGE if heard.started_s is None and image in why else "")
        return
    reader = results.Reader(store, look.spec.flow, {})
    python = reader.load(commit["artifacts"]["python"], "python")
    same = len(reader.load(commit["artifacts"]["probe"], "probe")) == 100_000
    text = f"the pod, with Python {python}, read from the store and wrote to it, and is removed ({seconds_text(seconds)} in all)"
    yield Found("ok", text) if same else Found("bad", "the store gives back something else than the pod wrote to it")
    for warning in commit.get("warnings", ()):
        yield Found("warn", str(warning))


def _why(heard: Heard, ended: Exit) -> str:
    if heard.failed:
        return f"{heard.failed.get('type')}: {heard.failed.get('message')}"
    words = {"oom": "it ran out of memory", "timeout": f"it did nothing for {BODY_S:.0f} s. Do pods reach the store's address?"}
    return ended.message or words.get(ended.reason, f"it ended ({ended.reason}) without a word")
