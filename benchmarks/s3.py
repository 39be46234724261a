"""A large array as an artifact in an S3 bucket: beside boto3 with the bare bytes, and beside metaflow's S3 datastore.

All three use one real server on this machine (versitygw, on a disk of this machine), so the network is none, and the figures say what
the clients cost. Each measurement is a process of its own, its imports and the making of the noise not counted.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.book import clean_environment, run_process, scratch
from benchmarks.environments import PEERS, PeerMissing, python_of, version_of
from benchmarks.measure import Contest, Contestant, Sample, Section, Settings, Unavailable

MEGABYTES = 256
BUCKET = "bench"


def run(settings: Settings) -> Section:
    from tests.stores.s3_server import serve

    megabytes = settings.scaled(MEGABYTES, 20)
    said: dict[str, dict[str, float]] = {}  # what each measured last
    with scratch() as folder, serve(folder / "buckets") as server:
        place = server.folder / server.bucket(BUCKET)

        def carry_out(name: str, command: list[str], more: dict[str, str]) -> None:
            own = folder / name
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            environment = {**clean_environment(own), **server.environment, "AWS_ENDPOINT_URL": server.endpoint, **more}
            environment |= {"XDG_CACHE_HOME": str(own / "cache"), "PYTHONPATH": str(Path(__file__).parent.parent)}
            _, cpu_s = run_process(command, environment, own)
            said[name] = {**json.loads((own / "report.json").read_text()), "cpu_s": cpu_s}
            for left in place.iterdir():
                shutil.rmtree(left, ignore_errors=True)

        def peer() -> str:
            try:
                return str(python_of("metaflow"))
            except PeerMissing as error:
                raise Unavailable(str(error)) from None

        def flowbook() -> None:
            carry_out("flowbook", [sys.executable, str(PEERS / "flowbook_s3.py"), BUCKET, "flowbook", str(megabytes)], {})

        def boto3() -> None:
            carry_out("boto3", [peer(), str(PEERS / "boto3_transfer.py"), BUCKET, "raw", str(megabytes)], {})

        def metaflow() -> None:
            more = {"METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/metaflow", "METAFLOW_S3_ENDPOINT_URL": server.endpoint}
            more |= {"METAFLOW_DEFAULT_DATASTORE": "s3", "USER": "bench", "METAFLOW_MEGABYTES": str(megabytes)}
            carry_out("metaflow", [peer(), str(PEERS / "metaflow_s3.py")], more)

        acts: dict[str, Callable[[], None]] = {"flowbook": flowbook} | ({"boto3": boto3, "metaflow": metaflow} if settings.peers else {})
        loads: dict[str, list[Sample]] = {_called(name): [] for name in acts}

        def measured(name: str) -> Sample:
            acts[name]()
            loads[_called(name)].append(Sample(megabytes / said[name]["load_s"]))
            return Sample(megabytes / said[name]["save_s"], said[name]["cpu_s"])

        contestants = [Contestant(_called(name), _what(name), partial(measured, name)) for name in acts]
        saving = Contest(f"{megabytes} MB of noise saved in S3: MB a second", "MB/s", True, contestants).hold(settings.rounds)
        kept = {name: samples[1:] for name, samples in loads.items()}  # of the same processes
        loading = Contest("the same loaded: MB a second", "MB/s", True, contestants, kept, saving.absent)
    notes = [
        "flowbook: hashed, sent if new, fetched, checked against its hash, mapped. boto3: the bare bytes, from memory to memory.",
        "CPU is that of the whole process, imports and noise included; not of the server, with which it shares the machine.",
    ]
    return Section("S3 store", [saving, loading], [], notes)


def _called(name: str) -> str:
    if name == "flowbook":
        return "flowbook: an artifact"
    if name == "boto3":
        return f"boto3 {version_of('metaflow', 'boto3')}: upload_fileobj, download_fileobj"
    return f"metaflow {version_of('metaflow', 'metaflow')}: save_artifacts, .data"


def _what(name: str) -> str:
    return {"flowbook": "the array", "boto3": "bytes", "metaflow": "the array, gzip"}[name]
