"""Artifacts whose names begin with an underscore go along as others do."""

from metaflow import FlowSpec, step


class PrivateFlow(FlowSpec):
    @step
    def start(self):
        self._secret, self.__mangled, self.public = "s", "m", "p"
        self.next(self.middle)

    @step
    def middle(self):
        self.read = (self._secret, self.__mangled)
        self._secret = self._secret + "!"
        self.next(self.a, self.b)

    @step
    def a(self):
        self.seen = self._secret
        self.next(self.join)

    @step
    def b(self):
        self.seen = self._secret
        self.next(self.join)

    @step
    def join(self, inputs):
        self._secret = inputs.a._secret
        self.next(self.end)

    @step
    def end(self):
        self.final = self._secret


if __name__ == "__main__":
    PrivateFlow()
