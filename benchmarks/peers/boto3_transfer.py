"""boto3: bytes of noise to an S3 server and back, by its transfer manager as it is by default."""

import io
import json
import os
import sys
import time
from pathlib import Path

import boto3
import numpy

bucket, key, megabytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = numpy.random.default_rng(time.time_ns()).random(megabytes * 125_000).tobytes()
client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
client.head_bucket(Bucket=bucket)  # so that the connection is there, as flowbook's is

started = time.perf_counter()
client.upload_fileobj(io.BytesIO(data), bucket, key)
sent = time.perf_counter()
back = io.BytesIO()
client.download_fileobj(bucket, key, back)
done = time.perf_counter()
assert back.getbuffer() == data
client.delete_object(Bucket=bucket, Key=key)
Path("report.json").write_text(json.dumps({"save_s": sent - started, "load_s": done - sent}))
