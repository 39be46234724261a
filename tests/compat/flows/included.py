"""Files as parameters: text, bytes, and one that is left out."""

# args: --data data/included.csv

from metaflow import FlowSpec, IncludeFile, step


class IncludedFlow(FlowSpec):
    data = IncludeFile("data", is_text=True, help="a table", default="data/other.csv")
    raw = IncludeFile("raw", is_text=False, default="data/raw.bin")
    nothing = IncludeFile("nothing", required=False)

    @step
    def start(self):
        self.rows = [line.split(",") for line in self.data.splitlines()]
        self.size = len(self.raw)
        self.kind = type(self.raw).__name__
        self.none = self.nothing
        self.next(self.end)

    @step
    def end(self):
        self.again = self.data.count("\n")


if __name__ == "__main__":
    IncludedFlow()
