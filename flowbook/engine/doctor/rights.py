"""Which rights flowbook needs in the namespace of its pods, and the Role that lacks. Pure.

RIGHTS are the rules of the account flowbook-engine in launch/rights.yaml (a test holds them equal), each with what it is for; and
EXTRA is what may be given beyond that file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).parent.parent / "launch" / "rights.yaml"  # what an administrator applies


@dataclass(frozen=True)
class Right:
    """One rule. `without`: what does not work where it lacks. `needed`: then nothing runs at all."""

    resource: str  # "pods/log" is the subresource log of pods
    verbs: tuple[str, ...]
    purpose: str
    without: str
    needed: bool = False


RIGHTS = (
    Right("pods", ("create", "delete", "get", "list", "watch"), "to start the pods of steps and to follow them", "no step runs", True),
    Right("pods/log", ("get",), "to see what a step prints", "what is printed is seen only when its step has ended"),
    Right("pods/portforward", ("create", "get"), "live cards and output", "cards are drawn when they are stored, some seconds later"),
    Right("events", ("get", "list", "watch"), "why a pod is Pending", "less is said of why a pod waits"),
    Right(
        "secrets",
        ("create",),
        "the project's key for its pods",
        "pods have no project key, unless FLOWBOOK_PROJECT_KEY stands in the Secret of kubernetes_secret",
    ),
)
EXTRA = (
    Right(
        "configmaps",
        ("create", "delete", "get", "list"),
        "an object with which all pods of a run go",
        "pods of a killed engine end at their own deadline, or by `%flow gc`",
    ),
)


def asked(rights: Iterable[Right] = (*RIGHTS, *EXTRA)) -> list[tuple[str, str]]:
    """Every (resource, verb)."""
    return [(right.resource, verb) for right in rights for verb in right.verbs]


def review(resource: str, verb: str, namespace: str) -> dict[str, object]:
    """A SelfSubjectAccessReview: may I?"""
    kind, _, part = resource.partition("/")
    about = {"namespace": namespace, "verb": verb, "group": "", "resource": kind, "subresource": part}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": about}}


def lacking(allowed: Iterable[tuple[str, str]], rights: Iterable[Right] = RIGHTS) -> list[Right]:
    """The rights that lack, each with those of its verbs that do.

    >>> [(right.resource, right.verbs) for right in lacking(set(asked()) - {("pods", "create"), ("events", "get")})]
    [('pods', ('create',)), ('events', ('get',))]
    """
    have = set(allowed)
    found = []
    for right in rights:
        verbs = tuple(verb for verb in right.verbs if (right.resource, verb) not in have)
        if verbs:
            found.append(Right(right.resource, verbs, right.purpose, right.without, right.needed))
    return found


def role(rights: Iterable[Right], namespace: str, user: str) -> str:
    """A Role with these rights and its binding to the account `user`, as YAML for `kubectl apply -f -`.

    Its name follows from what it holds: to apply another one later takes nothing away.
    """
    rules = []
    for right in rights:
        rules += [
            '- apiGroups: [""]',
            f"  resources: [{right.resource}]",
            f"  verbs: [{', '.join(right.verbs)}]  # {right.purpose}",
        ]
    name = f"flowbook-{hashlib.sha256(json.dumps([rules, user]).encode()).hexdigest()[:8]}"
    metadata = f"metadata: {{name: {name}, namespace: {namespace}, labels: {{app.kubernetes.io/name: flowbook}}}}"
    return "\n".join(
        [
            "apiVersion: rbac.authorization.k8s.io/v1",
            "kind: Role",
            metadata,
            "rules:",
            *rules,
            "---",
            "apiVersion: rbac.authorization.k8s.io/v1",
            "kind: RoleBinding",
            metadata,
            f"roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {name}}}",
            "subjects:",
            f"- {_written(_subject(user))}",
        ]
    )


def _subject(user: str) -> dict[str, str]:
    """
    >>> _subject("system:serviceaccount:team:flowbook-engine")
    {'kind': 'ServiceAccount', 'name': 'flowbook-engine', 'namespace': 'team'}
    """
    if user.startswith("system:serviceaccount:") and user.count(":") == 3:
        _, _, namespace, name = user.split(":")
        return {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    return {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}


def _written(subject: Mapping[str, str]) -> str:
    """In quotes, since the name of a user is any text; JSON is YAML, too."""
    return json.dumps(subject)
