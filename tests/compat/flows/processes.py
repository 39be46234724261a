"""What steps do with processes, threads, files and modules."""

import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from metaflow import FlowSpec, step


def squared(value):
    return value * value


class ProcessesFlow(FlowSpec):
    @step
    def start(self):
        with ProcessPoolExecutor(2) as pool:
            self.by_processes = list(pool.map(squared, [1, 2, 3]))
        with ThreadPoolExecutor(2) as pool:
            self.by_threads = list(pool.map(lambda value: value + 1, [1, 2, 3]))
        told = []
        thread = threading.Thread(target=lambda: told.append(len(self.by_threads)))
        thread.start()
        thread.join()
        self.told = told
        done = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
        self.printed = done.stdout.strip()
        self.argv_is_file = sys.argv[0].endswith("processes.py")
        self.name_is_main = __name__
        self.next(self.end)

    @step
    def end(self):
        import json

        self.text = json.dumps({"n": self.by_processes})
        self.main_has = hasattr(sys.modules["__main__"], "ProcessesFlow")


if __name__ == "__main__":
    ProcessesFlow()
