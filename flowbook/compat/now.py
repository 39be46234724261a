"""Metaflow's `current`: flowbook's own, where `run` and `task` are objects of the client."""

from __future__ import annotations

import sys
from typing import Any

from flowbook.spec import parameters
from flowbook.worker.current import Current

_OBJECTS = ("run", "task")


class MetaflowCurrent(Current):
    """`current` with Metaflow's meaning of `run` and `task`, its `get` and `in`. All else is flowbook's."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name == "trigger":
            return None
        if name == "parameter_names":
            return self._parameter_names()
        if name not in _OBJECTS or not self.is_running_flow:
            found = super().__getattr__(name)
            return found if name != "retry_count" or self.is_running_flow else 0
        from flowbook import client
        from flowbook.client import place

        parts = (self.flow_name, self.run_id, self.step_name, self.task_id)
        return client.Run._at(place.store(), parts[:2]) if name == "run" else client.Task._at(place.store(), parts)

    def _parameter_names(self) -> list[str]:
        """The attributes of the flow's class that are parameters."""
        cls = vars(sys.modules["__main__"]).get(self.flow_name)
        return list(parameters.parameters_of(cls)) if isinstance(cls, type) else []

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a name that a decorator put here, or `default`."""
        return getattr(self, key, default)

    def __contains__(self, key: str) -> bool:
        return getattr(self, key, None) is not None


current = MetaflowCurrent()
