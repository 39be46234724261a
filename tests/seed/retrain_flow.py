"""The seed's block, as written, with what it leaves out: retrain."""

from flowbook import FlowSpec, step
from flowbook import trigger, trigger_on_finish


# Trigger when a named event fires
@trigger(event="new_training_data")
class RetrainFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


# Trigger when another flow completes
@trigger_on_finish(flow="DataPrepFlow")
class TrainAfterPrepFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
