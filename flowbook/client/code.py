"""The text of what a run executed, as it was then: of a FlowSpec its file, of a notebook its cells, and the local modules of both."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowbook.client.record import Record
from flowbook.store import layout

Json = Any


class Code:
    """``run.code.flowspec`` is the text; `modules` are the local modules that went along, `read` gives one, `extract` writes all."""

    def __init__(self, record: Record, step: str | None = None) -> None:
        self._record, self._step = record, step

    @property
    def script_name(self) -> str:
        """The file, or the notebook, that the run was started from; as far as known."""
        spec = self._record.spec
        return Path(spec.program or spec.notebook or "").name

    @property
    def path(self) -> str:
        """The same with its folder, on the machine where it was started."""
        return self._record.spec.program or self._record.spec.notebook or ""

    @property
    def info(self) -> dict[str, Json]:
        spec = self._record.spec
        return {"script": self.script_name, "user": spec.user, "python_version": spec.python, "flow": spec.flow, "run": spec.run}

    @property
    def sources(self) -> dict[str, str]:
        """What it is called for people (``Cell In[7]``, a file) → text, of everything that ran."""
        return {str(found.get("label", name)): str(found.get("source", "")) for name, found in self._record.spec.sources.items()}

    @property
    def flowspec(self) -> str:
        """The text of the file; of a notebook that of its step cells in order, or, for a task, of its cell."""
        spec = self._record.spec
        if spec.program is not None:
            return str(spec.sources.get(spec.program, {}).get("source", ""))
        steps = {step.filename: step for step in reversed(spec.steps) if self._step in (None, step.name)}  # methods share one cell
        texts = [str(spec.sources.get(name, {}).get("source", step.source)) for name, step in reversed(steps.items())]
        return "\n\n".join(text.strip("\n") for text in texts)

    @property
    def modules(self) -> list[str]:
        """The local modules that went along, by dotted name."""
        return sorted(self._record.spec.modules)

    def read(self, module: str) -> str:
        """The text of one of `modules`. Raises KeyError for another name."""
        return self._record.store.get(layout.blob(self._record.spec.modules[module]["blob"])).decode("utf-8", "replace")

    def extract(self) -> TemporaryDirectory[str]:
        """All of it as files in a temporary folder, which goes away with what is returned: `with run.code.extract() as folder`."""
        target = TemporaryDirectory(prefix="flowbook-code-")
        root = Path(target.name)
        spec = self._record.spec
        (root / (Path(spec.program).name if spec.program else f"{spec.flow}.py")).write_text(self.flowspec)
        for name, known in spec.modules.items():
            parts = name.split(".")
            path = root.joinpath(*parts, "__init__.py") if known.get("package") else root.joinpath(*parts).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.read(name))
        return target

    def __str__(self) -> str:
        return self.flowspec

    def __repr__(self) -> str:
        return f"<Code of run {self._record.run} of {self._record.flow}: {self.script_name or 'cells'}, {len(self.modules)} local modules>"
