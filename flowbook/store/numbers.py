"""The number of a run: the next free one of its flow, taken by creating `run.json`, so that two who start at once get two."""

from __future__ import annotations

import dataclasses

from flowbook.spec import flow as flows
from flowbook.spec.flow import Spec
from flowbook.store import layout, trust
from flowbook.store.base import Store


def take_number(spec: Spec, store: Store) -> Spec:
    """The spec with its number, written. Raises StoreError."""
    number = 1 + max((int(run) for run in store.names(layout.flow_prefix(spec.flow).rstrip("/")) if run.isdigit()), default=0)
    while True:
        numbered = dataclasses.replace(spec, run=str(number))
        key = layout.spec(spec.flow, numbered.run)
        if store.create(key, trust.sign(store, key, flows.to_json(numbered))):
            return numbered
        number += 1
