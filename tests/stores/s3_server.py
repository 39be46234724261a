"""A real S3 server for tests: versitygw as a process of its own on a free port, its buckets in a folder that goes away."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import build

KEY, SECRET = "flowbook-test", "not-a-secret-of-anybody"
REGION = "us-east-1"
NAMED = os.environ.get("FLOWBOOK_TEST_VERSITYGW")  # read now: tests begin without variables of ours


@dataclass(frozen=True)
class Server:
    endpoint: str
    folder: Path  # a bucket is a folder in it

    def bucket(self, name: str) -> str:
        (self.folder / name).mkdir(exist_ok=True)
        return name

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to use it, beside FLOWBOOK_STORE."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "FLOWBOOK_S3_ENDPOINT": self.endpoint,
        }


def find() -> str | None:
    """The program: named by the environment, on the path, or built by tests/cluster."""
    if NAMED or shutil.which("versitygw"):
        return NAMED or shutil.which("versitygw")
    try:
        return build.program("versitygw")
    except build.CannotBuild:
        return None


@contextmanager
def serve(folder: Path) -> Iterator[Server]:
    """Skips the test, aloud, where there is no such program."""
    program = find()
    if program is None:
        pytest.skip("no versitygw here: `python -m tests.cluster build s3` builds it; or name one by FLOWBOOK_TEST_VERSITYGW")
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(5):  # another process may take the port that was free
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        with (folder.parent / "versitygw.log").open("wb") as log:
            process = subprocess.Popen(
                [program, "--port", f"127.0.0.1:{port}", "--region", REGION, "posix", str(folder)],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            if _answers(process, port):
                yield Server(f"http://127.0.0.1:{port}", folder)
                return
        finally:
            process.terminate()
            process.wait(30)
    pytest.fail(f"versitygw did not start: {(folder.parent / 'versitygw.log').read_text()[-2000:]}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            return True
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    return False
