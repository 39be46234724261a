"""What tasks print, in many lines, and read through the client."""

from metaflow import FlowSpec, Run, current, step


class LoggedFlow(FlowSpec):
    @step
    def start(self):
        for n in range(50):
            print(f"line {n} of start: naïve ☃")
        print("no end of line", end="")
        self.numbers = [0, 1]
        self.next(self.each, foreach="numbers")

    @step
    def each(self):
        print(f"item {self.input}")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        run = Run(f"LoggedFlow/{current.run_id}")
        self.lines = len(run["start"].task.stdout.splitlines())
        self.items = sorted(task.stdout.strip() for task in run["each"])
        self.last = [text for _, text in run["start"].task.loglines("stdout")][-1].strip()


if __name__ == "__main__":
    LoggedFlow()
