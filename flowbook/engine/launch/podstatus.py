"""What a pod's status says, in words and as an Exit. Pure: reads the JSON of one Pod, as a list or a watch gives it.

phase_of      where it is: queued, scheduled, pulling, starting, ended
waits_for     why it does not run yet, with the next move; and whether waiting can help at all
held_up       the same from the events of a pod that has a node, where its status does not tell
exit_of       how it ended; an attempt's success is not said here, its COMMIT says that
refused       what a refusal of the API server means (no rights, quota, wrong name, …)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flowbook.engine.launch.local import Exit
from flowbook.engine.launch.podspec import CONTAINER

Json = Any
Pod = Mapping[str, Json]

PULLS = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "ErrImageNeverPull", "SignatureValidationFailed")
HOPELESS = ("InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_GONE = re.compile(r"not found|does not exist|manifest unknown|name unknown|repository .* not|invalid reference", re.I)
_UNAUTHORISED = re.compile(r"unauthori[sz]ed|denied|authentication required|no basic auth|\b401\b|\b403\b", re.I)
_NO_TEXT = re.compile(r"invalid UTF-8|can't contain null", re.I)  # of variables, as containerd and runc say it; the latter with the value
_EVICTED = {"Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost", "NodeAffinity"}


@dataclass(frozen=True)
class Waits:
    """Why a pod does not run: `why` in a sentence. `kind`: "unschedulable", "image", "config", "quota", "start".

    `hopeless`: no waiting helps. `brief`: it may pass, but not by much waiting (an image that cannot be pulled).
    """

    kind: str
    why: str
    hopeless: bool = False

    @property
    def brief(self) -> bool:
        return self.kind in ("image", "config")


def name_of(pod: Pod) -> str:
    return str(pod["metadata"]["name"])


def is_over(pod: Pod) -> bool:
    """No container of it runs any more, nor will."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def is_leaving(pod: Pod) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def phase_of(pod: Pod) -> str:
    """queued (no node yet), scheduled, pulling, starting (its container runs; the worker says what it does from then on), ended."""
    if is_over(pod):
        return "ended"
    state = _container(pod).get("state", {})
    if "running" in state or "terminated" in state:
        return "starting"
    if _condition(pod, "PodScheduled").get("status") != "True":
        return "queued"
    if state.get("waiting", {}).get("reason") in PULLS or _condition(pod, "PodReadyToStartContainers").get("status") == "True":
        return "pulling"  # the sandbox is there: what is left before the start is the image
    return "scheduled"


def waits_for(pod: Pod) -> Waits | None:
    """None if nothing is known to hold it up."""
    if is_over(pod):
        return None
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _unscheduled(pod, str(scheduled.get("reason") or ""), str(scheduled.get("message") or ""))
    waiting = _container(pod).get("state", {}).get("waiting", {})
    reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "").strip()
    image = _image(pod)
    if reason == "InvalidImageName":
        return Waits("image", f"{image!r} is no name of an image. Correct --image (or @kubernetes(image=…), kubernetes_image)", True)
    if reason in PULLS:
        return _not_pulled(image, reason, message)
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return Waits("config", _not_created(pod, reason, message), reason != "CreateContainerError" or _NO_TEXT.search(message) is not None)
    return None


def _unscheduled(pod: Pod, reason: str, message: str) -> Waits:
    if reason == "SchedulingGated":
        return Waits("unschedulable", f"something else holds the pod back (a scheduling gate): {message}")
    wanted = wants(pod)
    # "no new claims to deallocate" is of the scheduler's dynamic resources, which we do not use
    nodes = re.sub(r"\s*preemption:.*|\s*no new claims to deallocate\b", "", message).rstrip("., ") or "no node fits"
    return Waits(
        "unschedulable", f"no node for {wanted} yet: {nodes}. If none is being made, ask for less, or see the tiers of your settings"
    )


def wants(pod: Pod) -> str:
    """What it asks of a node, in words."""
    spec = pod["spec"]
    amounts = spec["containers"][0].get("resources", {}).get("requests", {})
    asked = ", ".join(f"{name.rpartition('/')[2] if '/' in name else name} {amount}" for name, amount in amounts.items())
    terms = (
        spec.get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        .get("nodeSelectorTerms", [])
    )
    kinds = [
        f"{each['key'].rpartition('/')[2]} {' or '.join(each['values'])}"
        for term in terms
        for each in term.get("matchExpressions", ())
        if each.get("values")
    ]
    kinds += [f"{name.rpartition('/')[2]} {value}" for name, value in spec.get("nodeSelector", {}).items()]
    return f"{asked}; {', '.join(kinds)}" if kinds else asked


def _not_pulled(image: str, reason: str, message: str) -> Waits:
    cause = _last_cause(message) or reason
    if reason == "ErrImageNeverPull":
        return Waits(
            "image", f"the image {image} is not on the node, and image_pull_policy is Never. Load it there, or drop that policy", True
        )
    if _UNAUTHORISED.search(message):
        mend = "Name a pull secret with @kubernetes(image_pull_secrets=[…]), or correct the name (registries answer so for names they do not have)"
        return Waits("image", f"the image {image} may not be pulled: {cause}. {mend}", True)
    if _GONE.search(message):
        return Waits("image", f"there is no image {image}: {cause}. Correct --image (or @kubernetes(image=…), kubernetes_image)", True)
    return Waits("image", f"the image {image} cannot be pulled: {cause}. Is the registry reachable from the nodes? Else correct --image")


def _last_cause(message: str) -> str:
    """The end of a chain of causes, which is where the registry speaks."""
    inner = re.findall(r'(?:: )([^:"]+(?:: [^:"]+){0,2})"?$', message.strip().strip('"'))
    return (inner[-1] if inner else message).strip()[:300]


def held_up(events: Iterable[Mapping[str, Json]]) -> Waits | None:
    """The last word of a node that cannot get a pod ready. `events`: those of type Warning about that pod."""
    told = [event for event in events if event.get("reason") in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")]
    if not told:
        return None
    message = str(max(told, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or "")).get("message") or "")
    if absent := _absent(message):
        return Waits("config", absent, True)
    return Waits("start", f"its node cannot get the pod ready: {message.strip()[:300]}")


def _absent(message: str) -> str | None:
    found = re.search(r'(secret|configmap) "([^"]+)" not found', message)
    if found is None:
        return None
    ways = (
        "--secret kubernetes:NAME, @kubernetes(secrets=[…], volumes={…}), kubernetes_secret"
        if found[1] == "secret"
        else "@kubernetes(volumes={…})"
    )
    return f"the pod needs the {found[1]} {found[2]!r}, which its namespace has not. Make it there, or name another ({ways})"


def _not_created(pod: Pod, reason: str, message: str) -> str:
    if absent := _absent(message):
        return absent
    if _NO_TEXT.search(message):
        return (
            "a value of a Secret that the pod takes as variables is no text (UTF-8 without NUL). "
            "Keep it in base64, or mount that Secret as files: @kubernetes(volumes={…})"
        )
    if "runAsNonRoot" in message or "non-root" in message:
        return f"the image wants to run as root, which is not allowed here: {message}. Set kubernetes_user to another user id"
    if "executable file not found" in message or "no such file" in message:
        return (
            f"the image {_image(pod)} has no python3 in its path: {message[:200]}. Use an image with Python, or @kubernetes(executable=…)"
        )
    return f"the container cannot be made ({reason}): {message[:300]}"


# ---- how it ended -------------------------------------------------------------------------------------------------------


def exit_of(pod: Pod, *, deleted: bool = False) -> Exit:
    """How an attempt's pod ended. `deleted`: the object is gone, or is going, and it was not us who removed it.

    What is no fault of the attempt (eviction, a lost node, a removed pod) has `again`: no --retry is used up by it.
    """
    status = pod.get("status", {})
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    ended = _container(pod).get("state", {}).get("terminated") or {}
    disruption = _condition(pod, "DisruptionTarget")
    if reason == "DeadlineExceeded":
        return Exit("timeout", message="the pod reached its deadline")
    if ended.get("reason") == "OOMKilled":
        return Exit("oom", code=ended.get("exitCode"))
    if reason == "Evicted" and "ephemeral" in message:
        return Exit("lost", message=f"the pod used more disk than it may: {message}. Ask for more with --disk (or @resources(disk=…))")
    if reason in _EVICTED or disruption.get("status") == "True":
        why = message or str(disruption.get("message") or disruption.get("reason") or reason)
        return Exit("evicted", message=f"the pod was evicted: {why}", again=True)
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return Exit("lost", ended.get("exitCode"), message=_not_created(pod, str(ended["reason"]), str(ended.get("message") or "")))
    if ended and ended.get("exitCode") == 0:
        return Exit("ended", 0)
    if deleted or is_leaving(pod):
        return Exit("evicted", message="the pod was deleted by somebody else", again=True)
    if ended:
        return _by_code(int(ended.get("exitCode", 0)), int(ended.get("signal") or 0), str(ended.get("message") or ""))
    if reason.startswith("OutOf") or reason == "UnexpectedAdmissionError":
        return Exit("lost", message=f"the node could not take the pod after all: {message or reason}", again=True)
    return Exit("lost", message=f"the pod ended without saying how{f' ({reason}: {message})' if reason else ''}", again=True)


def _by_code(code: int, number: int, message: str) -> Exit:
    import signal

    number = number or (code - 128 if 128 < code < 160 else 0)
    if number:
        try:
            return Exit("killed", -number, signal.Signals(number).name, message=message)
        except ValueError:
            return Exit("killed", -number, f"signal {number}", message=message)
    return Exit("ended", code, message=message)


# ---- refusals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A refusal in words. `waits`: it may pass by itself (a quota), so the create is tried again."""

    message: str
    waits: bool = False


def refused(code: int, body: str, doing: str, namespace: str) -> Refusal:
    """`doing`: "create pods". `body`: the answer, a Status in JSON or whatever a proxy wrote.

    >>> refused(404, '{"message": "namespaces \\\\"x\\\\" not found"}', "create pods", "x").message
    "the cluster has no namespace 'x'. Set kubernetes_namespace (or @kubernetes(namespace=…)) to one that is there"
    """
    try:
        status = json.loads(body)
        said = str(status.get("message") or body)
    except (ValueError, AttributeError):
        said = body.strip()[:300]
    if code == 403 and "exceeded quota" in said:
        return Refusal(
            f"the quota of namespace {namespace} is used up: {said.partition('exceeded quota: ')[2] or said}. It is tried again", True
        )
    if code == 403 and "violates PodSecurity" in said:
        return Refusal(
            f"namespace {namespace} does not allow such a pod: {said.partition('violates ')[2]}. Drop what @kubernetes or the template adds"
        )
    if code == 403 and "error looking up service account" in said:
        return Refusal(f"namespace {namespace} has no such service account: {said}. Set kubernetes_service_account to one that is there")
    if code == 403:
        verb, _, kind = doing.partition(" ")
        rule = f'apiGroups: [""], resources: [{kind.replace(" of ", "/")}], verbs: [{verb}]'
        return Refusal(f"this account may not {doing} in namespace {namespace}: {said}. A Role there needs the rule {rule}")
    if code == 401:
        return Refusal(f"the cluster does not know this account (401): {said}. Log in again, or check the kubeconfig's user")
    if code == 404 and "namespaces" in said:
        return Refusal(
            f"the cluster has no namespace {namespace!r}. Set kubernetes_namespace (or @kubernetes(namespace=…)) to one that is there"
        )
    if code == 422:
        return Refusal(f"Kubernetes refuses the pod: {said}. Correct what @kubernetes says, or the settings of the cluster")
    return Refusal(f"the cluster refused to {doing} in namespace {namespace} ({code}): {said}")


# ---- parts of a status --------------------------------------------------------------------------------------------------


def _condition(pod: Pod, kind: str) -> Mapping[str, Json]:
    return next((each for each in pod.get("status", {}).get("conditions") or () if each.get("type") == kind), {})


def _container(pod: Pod) -> Mapping[str, Json]:
    return next((each for each in pod.get("status", {}).get("containerStatuses") or () if each.get("name") == CONTAINER), {})


def _image(pod: Pod) -> str:
    containers = pod.get("spec", {}).get("containers") or [{}]
    return str(next((each for each in containers if each.get("name") == CONTAINER), containers[0]).get("image", ""))


def container_started(pod: Pod) -> bool:
    return "running" in _container(pod).get("state", {})
