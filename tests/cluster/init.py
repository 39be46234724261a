"""The first process of a cluster's own namespaces: starts its parts, tells what became of them, and ends them all with itself.

It is process 1 of a PID namespace, so when it ends, for whatever reason, the kernel ends every process of the cluster: shims,
pods, and what they started. The mounts and the network go with the last of them. Nothing outside the namespaces is ever touched.

    python init.py CONTROL_SOCKET

It ends on SIGTERM, and when nobody holds it any more, unless somebody said "keep". Who started it holds it by its standard input,
others by a connection on which they said "hold": so a cluster does not outlive a start that failed, or the tests that it was made
for, however those end. Standard library only; run by path, it imports nothing of the project.

On the socket: one JSON object a line, one answer a line; {"error": …} where it could not be done.
    {"do": "start", "name": …, "argv": […], "env": {…}, "log": path}    → {"pid": …}, its id within the namespace
    {"do": "run", "argv": […], "limit_s": …}                            → {"code": …, "output": …}, for a short command
    {"do": "stop", "name": …}     ends a part, kindly first              → {"code": …}
    {"do": "status"}                                                     → {name: {"pid": …, "code": null or …, "log": …}}
    {"do": "keep"}                outlive those who hold it              → {}
    {"do": "holders"}                                                    → {"holders": …, "kept": true or false}
    {"do": "hold"}                stay while this connection is open     → {"holders": how many there are now}
"""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from typing import Any

KIND_S = 5  # so long a part may take to end by itself


class Parts:
    """The parts by name. Every method may be called from any thread."""

    def __init__(self) -> None:
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.logs: dict[str, str] = {}
        self.kept = False
        self.holders = 1  # standard input
        self.lock = threading.Lock()

    def start(self, name: str, argv: list[str], env: dict[str, str], log: str) -> dict[str, Any]:
        with self.lock:
            if name in self.started and self.started[name].poll() is None:
                return {"error": f"{name} runs already"}
            try:
                with open(log, "ab") as out:
                    part = subprocess.Popen(
                        argv, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                    )
            except OSError as error:
                return {"error": f"{argv[0]} cannot be started: {error.strerror}"}
            self.started[name], self.logs[name] = part, log
        return {"pid": part.pid}

    def run(self, argv: list[str], limit_s: float) -> dict[str, Any]:
        try:
            done = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            )
        except OSError as error:
            return {"error": f"{argv[0]} cannot be started: {error.strerror}"}
        except subprocess.TimeoutExpired:
            return {"error": f"{argv[0]} was ended after {limit_s} s"}
        return {"code": done.returncode, "output": done.stdout.decode(errors="replace")}

    def stop(self, name: str) -> dict[str, Any]:
        part = self.started.get(name)
        if part is None:
            return {"error": f"no part is called {name}; there are {', '.join(self.started) or 'none'}"}
        part.terminate()
        try:
            part.wait(KIND_S)
        except subprocess.TimeoutExpired:
            part.kill()
            part.wait()
        return {"code": part.returncode}

    def status(self) -> dict[str, Any]:
        return {name: {"pid": part.pid, "code": part.poll(), "log": self.logs[name]} for name, part in self.started.items()}

    def keep(self) -> dict[str, Any]:
        self.kept = True
        return {}

    def count(self) -> dict[str, Any]:
        return {"holders": self.holders, "kept": self.kept}

    def hold(self) -> dict[str, Any]:
        with self.lock:
            self.holders += 1
            return {"holders": self.holders}

    def let_go(self) -> None:
        with self.lock:
            self.holders -= 1
            if not self.holders and not self.kept:
                os._exit(0)

    def wait_for_the_starter(self) -> None:
        while os.read(0, 1):
            pass
        self.let_go()


def serve(path: str) -> None:
    parts = Parts()
    doings = {name: getattr(parts, name) for name in ("start", "run", "stop", "status", "keep", "hold")} | {"holders": parts.count}

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            held = 0
            try:
                for line in self.rfile:
                    asked = json.loads(line)
                    held += asked["do"] == "hold"
                    self.wfile.write(json.dumps(doings[asked.pop("do")](**asked)).encode() + b"\n")
            except ConnectionError:
                pass  # who asked is gone
            finally:
                for _ in range(held):
                    parts.let_go()

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    threading.Thread(target=parts.wait_for_the_starter, daemon=True).start()
    with Server(path, Answer) as server:
        server.serve_forever()


def main(path: str) -> None:
    server = os.fork()
    if server == 0:
        serve(path)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while os.wait()[0] != server:  # orphans of the namespace end here; the parts are the server's own children
        pass


if __name__ == "__main__":
    main(sys.argv[1])
