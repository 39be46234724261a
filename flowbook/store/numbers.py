"""The number of a run: the next free one of its flow, taken by creating `run.json`, so that two who start at once get two."""

from __future__ import annotations

import dataclasses
import json

from flowbook.spec import flow as flows
from flowbook.spec.flow import Spec
from flowbook.store import layout
from flowbook.store.base import Store


def take_number(spec: Spec, store: Store) -> Spec:
    """The spec with its number, written. Raises StoreError."""
    number = 1 + max((int(run) for run in store.names(layout.flow_prefix(spec.flow).rstrip("/")) if run.isdigit()), default=0)
    while True:
        numbered = dataclasses.replace(spec, run=str(number))
        data = json.dumps(flows.to_json(numbered), separators=(",", ":")).encode()
        if store.create(layout.spec(spec.flow, numbered.run), data):
            return numbered
        number += 1
