"""Which nodes a pod could be on: by their labels, and by what they have in all. Pure.

Taints, and what other pods use already, are left to a pod that is tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Json = Any
UNITS = {"m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


def suited(pod: Mapping[str, Json], nodes: Iterable[Mapping[str, Json]]) -> list[str]:
    """The names of those nodes that have the labels and the amounts which the pod asks for."""
    return [str(node["metadata"]["name"]) for node in nodes if _has_labels(pod["spec"], node) and _has_amounts(pod["spec"], node)]


def amount(quantity: str) -> float:
    """A quantity as Kubernetes writes it.

    >>> amount("500m"), amount("64000M"), amount("2Ki"), amount("110")
    (0.5, 64000000000.0, 2048.0, 110.0)
    """
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    return float(found[1]) * UNITS.get(found[2], 1.0) if found else 0.0


def _has_amounts(spec: Mapping[str, Json], node: Mapping[str, Json]) -> bool:
    has = node.get("status", {}).get("allocatable") or {}
    asked = spec["containers"][0].get("resources", {}).get("requests", {})
    return all(amount(str(has.get(name, "0"))) >= amount(str(wanted)) for name, wanted in asked.items())


def _has_labels(spec: Mapping[str, Json], node: Mapping[str, Json]) -> bool:
    labels = node["metadata"].get("labels") or {}
    required = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = [term.get("matchExpressions") or () for term in required.get("nodeSelectorTerms") or ()]
    return all(labels.get(name) == value for name, value in spec.get("nodeSelector", {}).items()) and (
        not terms or any(all(_holds(each, labels) for each in term) for term in terms)
    )


def _holds(wish: Mapping[str, Json], labels: Mapping[str, str]) -> bool:
    """One of our expressions; of another operator, which only a template can bring, nothing is said against it."""
    key, values = wish["key"], wish.get("values") or ()
    return {"In": labels.get(key) in values, "Exists": key in labels, "DoesNotExist": key not in labels}.get(wish["operator"], True)
