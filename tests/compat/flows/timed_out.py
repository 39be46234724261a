"""@timeout ends a step that takes too long; @catch keeps the flow going."""

import time

from metaflow import FlowSpec, catch, step, timeout


class TimedOutFlow(FlowSpec):
    @catch(var="late", print_exception=False)
    @timeout(seconds=1)
    @step
    def start(self):
        self.began = True
        time.sleep(60)
        self.ended = True
        self.next(self.end)

    @timeout(minutes=1, seconds=5)
    @step
    def end(self):
        self.was_late = bool(self.late)
        self.ended_too = hasattr(self, "ended")


if __name__ == "__main__":
    TimedOutFlow()
