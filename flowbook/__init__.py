"""flowbook: steps written in notebook cells, run in pods, their results back in the kernel by name.

`%load_ext flowbook` is the door for notebooks; `from flowbook import flow` its Python twin. Names here are lazy, so that
`import flowbook` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowbook._version import __version__ as __version__
    from flowbook.client import DataArtifact as DataArtifact
    from flowbook.client import Flow as Flow
    from flowbook.client import Metaflow as Metaflow
    from flowbook.client import Run as Run
    from flowbook.client import Step as Step
    from flowbook.client import Task as Task
    from flowbook.client import namespace as namespace
    from flowbook.errors import FlowbookError as FlowbookError
    from flowbook.errors import StepFailed as StepFailed
    from flowbook.kernel.api import flow as flow
    from flowbook.runner import Runner as Runner
    from flowbook.spec.decorators import card as card
    from flowbook.spec.decorators import catch as catch
    from flowbook.spec.decorators import checkpoint as checkpoint
    from flowbook.spec.decorators import conda as conda
    from flowbook.spec.decorators import conda_base as conda_base
    from flowbook.spec.decorators import environment as environment
    from flowbook.spec.decorators import exit_hook as exit_hook
    from flowbook.spec.decorators import kubernetes as kubernetes
    from flowbook.spec.decorators import parallel as parallel
    from flowbook.spec.decorators import project as project
    from flowbook.spec.decorators import pypi as pypi
    from flowbook.spec.decorators import pypi_base as pypi_base
    from flowbook.spec.decorators import resources as resources
    from flowbook.spec.decorators import retry as retry
    from flowbook.spec.decorators import schedule as schedule
    from flowbook.spec.decorators import secrets as secrets
    from flowbook.spec.decorators import step as step
    from flowbook.spec.decorators import timeout as timeout
    from flowbook.spec.decorators import trigger as trigger
    from flowbook.spec.decorators import trigger_on_finish as trigger_on_finish
    from flowbook.spec.decorators import user_step_decorator as user_step_decorator
    from flowbook.spec.flowspec import FlowSpec as FlowSpec
    from flowbook.spec.parameters import Config as Config
    from flowbook.spec.parameters import IncludeFile as IncludeFile
    from flowbook.spec.parameters import JSONType as JSONType
    from flowbook.spec.parameters import Parameter as Parameter
    from flowbook.spec.parameters import config_expr as config_expr
    from flowbook.store.values import Directory as Directory
    from flowbook.store.values import File as File
    from flowbook.worker.checkpoint import load_checkpoint as load_checkpoint
    from flowbook.worker.checkpoint import save_checkpoint as save_checkpoint
    from flowbook.worker.current import current as current

__all__ = [
    "Config",
    "DataArtifact",
    "Directory",
    "File",
    "Flow",
    "FlowSpec",
    "FlowbookError",
    "IncludeFile",
    "JSONType",
    "Metaflow",
    "Parameter",
    "Run",
    "Runner",
    "Step",
    "StepFailed",
    "Task",
    "__version__",
    "card",
    "catch",
    "checkpoint",
    "conda",
    "conda_base",
    "config_expr",
    "current",
    "environment",
    "exit_hook",
    "flow",
    "kubernetes",
    "load_checkpoint",
    "namespace",
    "parallel",
    "project",
    "pypi",
    "pypi_base",
    "resources",
    "retry",
    "save_checkpoint",
    "schedule",
    "secrets",
    "step",
    "timeout",
    "trigger",
    "trigger_on_finish",
    "user_step_decorator",
]

_WHERE = {
    "Config": "flowbook.spec.parameters",
    "DataArtifact": "flowbook.client",
    "Directory": "flowbook.store.values",
    "File": "flowbook.store.values",
    "Flow": "flowbook.client",
    "FlowSpec": "flowbook.spec.flowspec",
    "FlowbookError": "flowbook.errors",
    "IncludeFile": "flowbook.spec.parameters",
    "JSONType": "flowbook.spec.parameters",
    "Metaflow": "flowbook.client",
    "Parameter": "flowbook.spec.parameters",
    "Run": "flowbook.client",
    "Runner": "flowbook.runner",
    "Step": "flowbook.client",
    "StepFailed": "flowbook.errors",
    "Task": "flowbook.client",
    "__version__": "flowbook._version",
    "card": "flowbook.spec.decorators",
    "catch": "flowbook.spec.decorators",
    "checkpoint": "flowbook.spec.decorators",
    "conda": "flowbook.spec.decorators",
    "conda_base": "flowbook.spec.decorators",
    "config_expr": "flowbook.spec.parameters",
    "current": "flowbook.worker.current",
    "environment": "flowbook.spec.decorators",
    "exit_hook": "flowbook.spec.decorators",
    "flow": "flowbook.kernel.api",
    "kubernetes": "flowbook.spec.decorators",
    "load_checkpoint": "flowbook.worker.checkpoint",
    "namespace": "flowbook.client",
    "parallel": "flowbook.spec.decorators",
    "project": "flowbook.spec.decorators",
    "pypi": "flowbook.spec.decorators",
    "pypi_base": "flowbook.spec.decorators",
    "resources": "flowbook.spec.decorators",
    "retry": "flowbook.spec.decorators",
    "save_checkpoint": "flowbook.worker.checkpoint",
    "schedule": "flowbook.spec.decorators",
    "secrets": "flowbook.spec.decorators",
    "step": "flowbook.spec.decorators",
    "timeout": "flowbook.spec.decorators",
    "trigger": "flowbook.spec.decorators",
    "trigger_on_finish": "flowbook.spec.decorators",
    "user_step_decorator": "flowbook.spec.decorators",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'flowbook' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ip: Any) -> None:
    """`%load_ext flowbook`."""
    from flowbook.kernel import load

    load(ip)
