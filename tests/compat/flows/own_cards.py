"""A card's components that are one's own, charts and images of libraries, and cards by id."""

from metaflow import FlowSpec, card, current, step
from metaflow.cards import Markdown, MetaflowCardComponent, Table, get_cards


class Bold(MetaflowCardComponent):
    def __init__(self, text):
        self._text = text

    def render(self):
        return f"<b>{self._text}</b>"


class OwnCardsFlow(FlowSpec):
    @card(id="first", type="blank")
    @card(id="second", type="blank")
    @step
    def start(self):
        import pandas as pd

        frame = pd.DataFrame({"n": [1, 2], "s": ["a", "b"]})
        current.card["first"].append(Bold("own"))
        current.card["first"].append(Table.from_dataframe(frame))
        current.card["second"].extend([Markdown("*two*"), Markdown("parts")])
        self.counts = [len(list(frame.columns))]
        self.next(self.plain)

    @card
    @step
    def plain(self):
        self.value = {"a": 1}
        self.next(self.end)

    @step
    def end(self):
        from metaflow import Run

        run = Run(f"OwnCardsFlow/{current.run_id}")
        self.found = sorted(str(each.id) for each in get_cards(run["start"].task))
        self.second = [each.type for each in get_cards(run["start"].task, id="second")]
        self.default = [each.type for each in get_cards(run["plain"].task, type="default")]
        self.has_text = "own" in get_cards(run["start"].task, id="first")[0].get()


if __name__ == "__main__":
    OwnCardsFlow()
