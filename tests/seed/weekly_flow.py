"""The seed's block, as written, with what it leaves out: weekly."""

from flowbook import FlowSpec, step
from flowbook import schedule


@schedule(cron="0 6 * * 1")  # Every Monday at 6 AM UTC
class WeeklyTrainFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    WeeklyTrainFlow()
