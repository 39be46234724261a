"""metaflow: a step that refreshes its card, by `clear` and `append` as its documentation shows, or by `update`."""

import json
import time
from pathlib import Path

from metaflow import FlowSpec, Parameter, card, current, step
from metaflow.cards import Markdown, Table


class CardFlow(FlowSpec):
    count = Parameter("count", type=int, default=1)
    pause = Parameter("pause", type=float, default=0.0)
    update = Parameter("update", type=bool, default=False)
    said = Parameter("said", type=str, default="")

    @card(type="blank", refresh_interval=1)
    @step
    def start(self):
        began, blocked = time.time(), []
        heading = Markdown("")
        for n in range(self.count):
            text = f"## Epoch {n} stamp:{n}:{1000 * time.time():.3f}:"
            before = time.perf_counter()
            if self.update and n:
                heading.update(text)
            else:
                heading = Markdown(text)
                current.card.clear()
                current.card.append(heading)
                current.card.append(Table([["Loss", f"{1 / (n + 1):.4f}"]]))
            current.card.refresh()
            blocked.append(time.perf_counter() - before)
            time.sleep(self.pause)
        if self.said:
            Path(self.said).write_text(json.dumps({"began": began, "blocked": blocked}))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CardFlow()
