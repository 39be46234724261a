"""@exit_hook: a function is called when the run has succeeded; the second run sees what that of the first did."""

# again: yes

import os

from metaflow import FlowSpec, exit_hook, step


def succeeded():
    with open("hook.txt", "a") as file:
        file.write("succeeded\n")


def failed():
    with open("hook.txt", "a") as file:
        file.write("failed\n")


@exit_hook(on_success=[succeeded], on_error=[failed])
class ExitHooksFlow(FlowSpec):
    @step
    def start(self):
        self.hooked = ""
        if os.path.exists("hook.txt"):
            with open("hook.txt") as file:
                self.hooked = file.read()
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ExitHooksFlow()
