"""Runs as the store has them: which there are, their specs and logs, and how they stand. Asks no engine and loads no value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from flowbook.engine import events
from flowbook.engine.state import DONE_STATES
from flowbook.errors import StoreError
from flowbook.spec import flow as flows
from flowbook.spec.flow import Spec
from flowbook.store import layout
from flowbook.store.base import Store
