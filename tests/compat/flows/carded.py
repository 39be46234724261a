"""Cards with every component, by name and by default, updated and refreshed."""

from metaflow import FlowSpec, card, current, step
from metaflow.cards import (
    Artifact,
    Error,
    EventsTimeline,
    Image,
    JSONViewer,
    Markdown,
    ProgressBar,
    PythonCode,
    Table,
    ValueBox,
    VegaChart,
    YAMLViewer,
    get_cards,
)

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)
CHART = {"data": {"values": [{"x": 1, "y": 2}]}, "mark": "line", "encoding": {"x": {"field": "x"}, "y": {"field": "y"}}}


class CardedFlow(FlowSpec):
    @card(type="blank", refresh_interval=1)
    @card(type="default", id="more", options={"only_repr": True}, timeout=60)
    @step
    def start(self):
        self.result = 3
        bar, text, chart = ProgressBar(max=3, label="steps"), Markdown("# Title"), VegaChart(CHART)
        current.card.append(text)
        current.card.append(bar, id="bar")
        current.card.extend([chart, Table([[1, "a"], [Markdown("*b*"), 2.5]], headers=["n", "what"])])
        current.card.append(Image(PIXEL, label="a pixel"))
        current.card.append(Artifact({"a": 1}, name="dict"))
        current.card.append(JSONViewer({"k": [1, 2]}, collapsible=True))
        current.card.append(YAMLViewer({"k": [1, 2]}))
        current.card.append(PythonCode(lambda value: value + 1))
        current.card.append(ValueBox(title="Accuracy", value=0.93, subtitle="of it", theme="success"))
        current.card.append(Error(ValueError("shown, not raised"), title="An error"))
        events = EventsTimeline(title="Events", max_events=5)
        events.update({"event": "begun", "n": 1})
        current.card.append(events)
        for n in range(3):
            bar.update(n + 1)
            text.update(f"# Title {n}")
            current.card.refresh()
        current.card["more"].append(Markdown("of the other card"))
        self.ids = "bar" in current.card.components
        self.next(self.end)

    @step
    def end(self):
        cards = get_cards(f"CardedFlow/{current.run_id}/start/{self.task_of('start')}")
        self.kinds = sorted((each.type, each.id) for each in cards if each.id or each.type == "blank")
        self.pages = [len(each.get()) > 100 for each in cards]

    def task_of(self, name):
        from metaflow import Run

        return Run(f"CardedFlow/{current.run_id}")[name].task.id


if __name__ == "__main__":
    CardedFlow()
