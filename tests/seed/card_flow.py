"""The seed's block, as written, with what it leaves out: card."""

from flowbook import FlowSpec, step, resources, card
from training import train_one_epoch

from flowbook.cards import Markdown, Table, VegaChart


class CardFlow(FlowSpec):
    @step
    def start(self):
        self.epochs = 5
        self.next(self.train)

    @card(type="blank", refresh_interval=5)
    @resources(gpu=1)
    @step
    def train(self):
        from flowbook import current

        for epoch in range(self.epochs):
            loss = train_one_epoch()

            # Update the card every 5 seconds
            current.card.clear()
            current.card.append(
                Markdown(f"## Epoch {epoch}/{self.epochs}")
            )
            current.card.append(
                Table([["Loss", f"{loss:.4f}"]])
            )
            current.card.refresh()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CardFlow()
