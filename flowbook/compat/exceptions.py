"""Metaflow's base exception, which flows raise and derive from."""

from __future__ import annotations

from flowbook.errors import FlowbookError


class MetaflowException(FlowbookError):
    """As in Metaflow: a message, which may be left out, and a headline that a class or an instance says."""

    headline = "Flow failed"

    def __init__(self, msg: str = "", lineno: int | None = None, source_file: str | None = None) -> None:
        self.message, self.line_no, self.source_file = msg, lineno, source_file
        super().__init__(msg)
