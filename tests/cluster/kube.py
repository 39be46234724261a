"""A cluster as a test sees it: kubectl, with JSON in and out, so that any kubeconfig works that an administrator may have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.build import CannotBuild, program

LIMIT_S = 120


class Refused(Exception):
    """kubectl ended with an error; its message is what the API server said."""


def kubectl() -> str:
    """The path of kubectl: ours, else the one of this machine."""
    try:
        return program("kubectl")
    except CannotBuild:
        found = shutil.which("kubectl")
        if found is None:
            raise
        return found


@dataclass(frozen=True)
class Kube:
    """The API server through one kubeconfig, and in one namespace where one is named."""

    kubeconfig: Path
    namespace: str = ""

    def run(self, *arguments: str, given: str | None = None, limit_s: float = LIMIT_S) -> str:
        """Runs kubectl and returns what it printed. Raises Refused."""
        command = [kubectl(), f"--kubeconfig={self.kubeconfig}", *(["-n", self.namespace] if self.namespace else []), *arguments]
        home = self.kubeconfig.parent / "cache"  # kubectl keeps there what the server can do
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            env=os.environ | {"KUBECACHEDIR": str(home)},
        )
        if done.returncode:
            raise Refused(f"kubectl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """One object, or ``{"items": […]}``."""
        return json.loads(self.run("get", *arguments, "-o", "json"))

    def create(self, content: dict[str, Any]) -> Any:
        # Without validation by kubectl, which asks for rights that small accounts have not; the server checks anyhow.
        return json.loads(self.run("create", "--validate=false", "-f", "-", "-o", "json", given=json.dumps(content)))

    def apply(self, file: Path) -> None:
        """What an administrator does with a YAML file."""
        self.run("apply", "-f", str(file))

    def delete(self, kind: str, name: str, *, wait: bool = False) -> None:
        self.run("delete", kind, name, "--ignore-not-found", f"--wait={str(wait).lower()}")

    def patch_status(self, kind: str, name: str, status: dict[str, Any]) -> None:
        self.run("patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))

    def patch(self, kind: str, name: str, change: dict[str, Any]) -> None:
        self.run("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def wait(self, thing: str, condition: str, limit_s: float = LIMIT_S) -> None:
        """Waits until it exists and the condition holds, as ``kubectl wait --for`` writes it."""
        self.run("wait", thing, "--for=create", f"--timeout={limit_s}s", limit_s=limit_s + 10)
        self.run("wait", thing, f"--for={condition}", f"--timeout={limit_s}s", limit_s=limit_s + 10)

    def phase(self, pod: str, *phases: str, limit_s: float = LIMIT_S) -> str:
        """Waits until the pod is in one of these phases; returns which."""
        wanted = set(phases or ("Succeeded", "Failed"))
        self.run("wait", f"pod/{pod}", "--for=create", f"--timeout={limit_s}s", limit_s=limit_s + 10)
        command = [kubectl(), f"--kubeconfig={self.kubeconfig}", "-n", self.namespace, "get", "pod", pod, "--watch"]
        command += ["-o", "jsonpath={.status.phase}{'\\n'}", f"--request-timeout={limit_s}s"]
        seen = ""
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as watch:
            try:
                assert watch.stdout is not None
                for line in watch.stdout:
                    seen = line.strip()
                    if seen in wanted:
                        return seen
            finally:
                watch.kill()
        raise Refused(
            f"pod {pod} is {seen or 'not seen'} after {limit_s} s, not {' or '.join(sorted(wanted))}:\n{self.run('describe', 'pod', pod)}"
        )

    def can(self, verb: str, resource: str) -> bool:
        """Whether this account may: ``can("create", "pods")``, ``can("get", "pods/log")``, ``can("get", "jobs.batch")``."""
        return (verb, resource) in self.allowed([(verb, resource)])

    def allowed(self, asked: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Which of these (verb, resource) this account may, each by a SelfSubjectAccessReview."""
        reviews = []
        for verb, resource in asked:
            name, _, part = resource.partition("/")
            name, _, group = name.partition(".")
            about = {"verb": verb, "resource": name, "subresource": part, "group": group, "namespace": self.namespace}
            kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
            reviews.append(kind | {"spec": {"resourceAttributes": about}})
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
        said = self.run("create", "--validate=false", "-f", "-", "-o", "jsonpath={.status.allowed}{'\\n'}", given=given).split()
        return {each for each, allowed in zip(asked, said, strict=True) if allowed == "true"}
