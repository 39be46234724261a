"""Every error flowbook raises, and how it looks in a notebook.

    FlowbookError
    ├── DefinitionError        a cell or an option is written wrongly (one or several findings)
    ├── CaptureError           a name of the notebook cannot go along with a run
    ├── ArtifactError          a value cannot be saved or loaded
    │   ├── ArtifactNotLoaded  a placeholder was used where only a value will do
    │   └── NotPicklable       names the variable and the attribute path
    ├── StepFailed             a task failed; shows the user's own traceback
    ├── RunStopped             the run was stopped by request
    ├── SettingError           a setting has a value that cannot be used
    ├── StoreError
    │   ├── StoreMissing       no such key
    │   ├── StoreFull          no space left, or quota reached
    │   ├── StoreReadOnly      the store cannot be written
    │   └── StoreTooNew        written by a newer flowbook
    └── EngineError            the engine process cannot be started or reached
        └── ClusterError       the cluster cannot be reached, or refuses

A message names the place, the cause and the next move. `_render_traceback_` is IPython's hook for an exception that
draws itself: a user's mistake never shows a traceback of our own code.
"""

from __future__ import annotations

from dataclasses import dataclass


class FlowbookError(Exception):
    """Base of all errors; never raised itself."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where (``Cell In[7], line 3`` or ``step train``), what, and what to do."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n    {self.remedy}" if self.remedy else text


class DefinitionError(FlowbookError):
    """A cell or an option is written wrongly. `findings` holds all that is wrong, not only the first."""

    def __init__(self, *findings: Finding | str) -> None:
        self.findings = tuple(f if isinstance(f, Finding) else Finding("", f) for f in findings)
        super().__init__("\n".join(map(str, self.findings)))


class CaptureError(FlowbookError):
    """A name of the notebook cannot go along with a run."""


class ArtifactError(FlowbookError):
    """A value cannot be saved or loaded."""


class ArtifactNotLoaded(ArtifactError):
    """A placeholder was used where only a value will do."""


class NotPicklable(ArtifactError):
    """A value cannot be pickled. `path` leads to the culprit: ``model.cache['lock']``."""

    def __init__(self, path: str, cause: str) -> None:
        self.path, self.cause = path, cause
        super().__init__(path, cause)

    def __str__(self) -> str:
        return f"{self.path} cannot be pickled: {self.cause}"


class StepFailed(FlowbookError):
    """A task failed. `traceback` is the user's own, mapped to cells and lines; `advice` says how to go on."""

    def __init__(self, message: str, traceback: str = "", advice: str = "") -> None:
        self.message, self.traceback, self.advice = message, traceback, advice
        super().__init__(message)

    def _render_traceback_(self) -> list[str]:
        parts = [self.traceback.rstrip(), f"StepFailed: {self.message}", self.advice]
        return [part for part in parts if part]


class RunStopped(FlowbookError):
    """The run was stopped by request."""


class SettingError(FlowbookError):
    """A setting has a value that cannot be used."""


class StoreError(FlowbookError):
    """The store refused or lost something."""


class StoreMissing(StoreError):
    """No object of that key."""


class StoreFull(StoreError):
    """No space left in the store."""


class StoreReadOnly(StoreError):
    """The store cannot be written."""


class StoreTooNew(StoreError):
    """The store was written by a newer flowbook."""


class EngineError(FlowbookError):
    """The engine process cannot be started or reached."""


class ClusterError(EngineError):
    """The cluster cannot be reached, or refuses."""
