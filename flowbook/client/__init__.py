"""The client: runs, tasks and artifacts of the store to read, by Metaflow's names, in any process.

    from flowbook.client import Flow
    Flow("TrainFlow").latest_successful_run.data.model

objects.py has the classes, place.py the store and the namespace, docs/client.md the tasks. The client reads the store alone: it
starts nothing, and writes nothing but tags, the index of a flow, and, with `Run.delete`, less.
"""

from __future__ import annotations

from flowbook.client.named import Artifacts, Data
from flowbook.client.objects import Artifact, Flow, Metadata, Metaflow, Run, Step, Task
from flowbook.client.place import (
    NamespaceMismatch,
    NotFound,
    RunBusy,
    default_metadata,
    default_namespace,
    get_metadata,
    get_namespace,
    metadata,
    namespace,
)
from flowbook.errors import DefinitionError as MetaflowInvalidPathspec
from flowbook.store.results import TaskError

# Metaflow's names of the same things.
DataArtifact = Artifact
MetaflowData = Data
MetaflowNotFound = NotFound
MetaflowNamespaceMismatch = NamespaceMismatch

__all__ = [
    "Artifact",
    "Artifacts",
    "Data",
    "DataArtifact",
    "Flow",
    "Metadata",
    "Metaflow",
    "MetaflowData",
    "MetaflowInvalidPathspec",
    "MetaflowNamespaceMismatch",
    "MetaflowNotFound",
    "NamespaceMismatch",
    "NotFound",
    "Run",
    "RunBusy",
    "Step",
    "Task",
    "TaskError",
    "default_metadata",
    "default_namespace",
    "get_metadata",
    "get_namespace",
    "metadata",
    "namespace",
]
