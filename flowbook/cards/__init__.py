"""Cards: what a step shows while it runs and keeps when it has ended.

    from flowbook.cards import Markdown, Table
    card.append(Markdown("## Epoch 3"))

components.py has the parts, custom.py the types of cards, wire.py their bytes, html.py their drawing without a browser's help.
"""

from flowbook.cards.components import (
    HTML,
    Artifact,
    Component,
    Error,
    Image,
    JSONViewer,
    LineChart,
    Markdown,
    ProgressBar,
    PythonCode,
    Table,
    ValueBox,
    VegaChart,
    YAMLViewer,
)
from flowbook.cards.custom import BlankCard, Card, DefaultCard, MetaflowCard
from flowbook.cards.timeline import EventsTimeline
from flowbook.cards.wire import read

__all__ = [
    "HTML",
    "Artifact",
    "BlankCard",
    "Card",
    "Component",
    "DefaultCard",
    "Error",
    "EventsTimeline",
    "Image",
    "JSONViewer",
    "LineChart",
    "Markdown",
    "MetaflowCard",
    "ProgressBar",
    "PythonCode",
    "Table",
    "ValueBox",
    "VegaChart",
    "YAMLViewer",
    "read",
]
