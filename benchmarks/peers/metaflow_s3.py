"""metaflow: an array of noise as an artifact in its S3 datastore, and its `.data` in another process, as a notebook reads it."""

import json
import os
import subprocess
import sys
from pathlib import Path

here = Path(__file__).parent
flow = [sys.executable, str(here / "metaflow_artifact.py"), "--no-pylint", "--datastore", "s3", "run"]
subprocess.run([*flow, "--megabytes", os.environ["METAFLOW_MEGABYTES"]], check=True)
saved = json.loads(Path("report.json").read_text())
subprocess.run([sys.executable, str(here / "metaflow_reopen.py")], check=True)
Path("report.json").write_text(json.dumps(saved | json.loads(Path("report.json").read_text())))
