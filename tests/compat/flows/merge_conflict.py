"""merge_artifacts refuses what differs, and what is not there; nothing is set then."""

from metaflow import FlowSpec, step
from metaflow.exception import MetaflowException, MissingInMergeArtifactsException, UnhandledInMergeArtifactsException


class MergeConflictFlow(FlowSpec):
    @step
    def start(self):
        self.fine = 1
        self.next(self.a, self.b)

    @step
    def a(self):
        self.value = "a"
        self.next(self.join)

    @step
    def b(self):
        self.value = "b"
        self.next(self.join)

    @step
    def join(self, inputs):
        self.caught = []
        try:
            self.merge_artifacts(inputs)
        except UnhandledInMergeArtifactsException:
            self.caught.append("differs")
        self.set_by_refused = hasattr(self, "fine")
        try:
            self.merge_artifacts(inputs, include=["nowhere"])
        except MissingInMergeArtifactsException:
            self.caught.append("missing")
        try:
            self.merge_artifacts(inputs, include=["fine"], exclude=["value"])
        except MetaflowException:
            self.caught.append("both")
        self.value = inputs.b.value
        self.merge_artifacts(inputs)
        self.next(self.end)

    @step
    def end(self):
        try:
            self.merge_artifacts([])
        except MetaflowException:
            self.caught.append("no join")


if __name__ == "__main__":
    MergeConflictFlow()
