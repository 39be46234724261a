"""Large artifacts, and one that is the same in many tasks."""

import hashlib

from metaflow import FlowSpec, step


class BigFlow(FlowSpec):
    @step
    def start(self):
        self.blob = bytes(range(256)) * 80_000
        self.text = "line of text\n" * 200_000
        self.numbers = list(range(200_000))
        self.parts = [0, 1, 2]
        self.next(self.part, foreach="parts")

    @step
    def part(self):
        self.digest = hashlib.sha256(self.blob + bytes([self.input])).hexdigest()
        self.next(self.join)

    @step
    def join(self, inputs):
        self.digests = [each.digest for each in inputs]
        self.merge_artifacts(inputs, exclude=["digest"])
        self.next(self.end)

    @step
    def end(self):
        self.size = (len(self.blob), len(self.text), self.numbers[-1])


if __name__ == "__main__":
    BigFlow()
