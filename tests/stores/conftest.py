"""An S3 server for the tests of stores: started when the first of them asks for it."""

import os
import uuid

import pytest

from flowbook.store.s3 import S3Store
from tests.stores.s3_server import REGION, serve


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("s3") / "buckets") as server:
        server.bucket("tests")
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch, tmp_path):
    """A function that opens an S3 store: all of one test have one prefix, unless it is given."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "FLOWBOOK_"))]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prefix = uuid.uuid4().hex

    def opened(bucket="tests", prefix=prefix, **more):
        return S3Store(bucket, prefix, **{"endpoint": s3_server.endpoint, "region": REGION, **more})

    return opened
