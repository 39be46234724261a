"""The training functions that the seed's blocks call, so small that they can be counted after."""

import os
import signal

epochs_trained = 0


class Net:
    """A model that knows how it was trained."""

    def __init__(self, lr, epochs):
        self.lr, self.epochs = lr, epochs


def train_model(lr, epochs=10):
    return Net(lr, epochs)


def evaluate(model):
    """Best at 0.01."""
    return round(1 - abs(model.lr - 0.01), 3)


def train_one_epoch():
    """A loss that falls. With DIE_AT=45 in the environment the process is killed in that epoch, counted from 0, unless the file
    `died` says that it was.
    """
    global epochs_trained
    with open("epochs.log", "a") as log:
        log.write(f"{os.getpid()}\n")
    if os.environ.get("DIE_AT") == str(epochs_trained) and not os.path.exists("died"):
        with open("died", "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    epochs_trained += 1
    return 1 / epochs_trained
