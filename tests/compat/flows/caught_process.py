"""@catch where the process itself ends."""

import os
import signal

from metaflow import FlowSpec, catch, step


class CaughtProcessFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.leaves, self.killed)

    @catch(var="failed", print_exception=False)
    @step
    def leaves(self):
        os._exit(3)
        self.next(self.join)

    @catch(var="failed", print_exception=False)
    @step
    def killed(self):
        os.kill(os.getpid(), signal.SIGKILL)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.told = [isinstance(error.exception, str) for error in (inputs.leaves.failed, inputs.killed.failed)]
        self.failed_both = [bool(inputs.leaves.failed), bool(inputs.killed.failed)]
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    CaughtProcessFlow()
