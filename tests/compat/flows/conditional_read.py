"""Artifacts that are read only sometimes, by name, or that may not be there."""

from metaflow import FlowSpec, step


class ConditionalReadFlow(FlowSpec):
    @step
    def start(self):
        self.flag, self.value = False, 5
        self.next(self.maybe)

    @step
    def maybe(self):
        if self.flag:
            self.optional = 1
        self.got = getattr(self, "optional", "absent")
        self.by_name = [getattr(self, name) for name in ("flag", "value")]
        try:
            self.nowhere  # noqa: B018
        except AttributeError as error:
            self.error = type(error).__name__
        self.next(self.dynamic)

    @step
    def dynamic(self):
        for n in range(3):
            setattr(self, f"made_{n}", n)
        self.helper()
        self.next(self.end)

    @step
    def end(self):
        self.total = sum(getattr(self, f"made_{n}") for n in range(3))
        self.known = [hasattr(self, name) for name in ("optional", "made_1", "by_helper", "start", "nowhere")]
        if not self.flag:
            self.value = self.value + self.by_helper

    def helper(self):
        self.by_helper = self.value * 2


if __name__ == "__main__":
    ConditionalReadFlow()
