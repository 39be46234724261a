"""flowbook: an array of noise into a store in a bucket and back, as a step saves it and a kernel loads it."""

import json
import os
import sys
import time
from pathlib import Path

import numpy

from flowbook.store import codec
from flowbook.store.s3 import S3Store

bucket, key, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
array = numpy.random.default_rng(time.time_ns()).random(megabytes * 125_000)
store = S3Store(bucket, key, endpoint=os.environ["AWS_ENDPOINT_URL"])
store.create("first", b"")  # so that the connection is there

started = time.perf_counter()
entry = codec.entry(store, "a", array)
sent = time.perf_counter()
back = codec.load(store, entry)
done = time.perf_counter()
assert numpy.array_equal(array, back)
store.delete_folder("blobs")
Path("report.json").write_text(json.dumps({"save_s": sent - started, "load_s": done - sent}))
