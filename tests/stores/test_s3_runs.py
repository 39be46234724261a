"""Whole runs with their store in a bucket: from a file, from a kernel, read by the client; and who is not believed."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from flowbook.client import Run, metadata
from flowbook.store import layout
from flowbook.store.s3_client import Client

FLOW = """
from flowbook import FlowSpec, step

class Sweep(FlowSpec):
    @step
    def start(self):
        import array
        self.table = array.array("d", range(100_000))
        self.rates = [{1}, {2}, {3}]
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        self.score = sum(self.input) * len(self.table)
        print("score", self.score)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.best = max(each.score for each in inputs)
        self.seen = {each.score for each in inputs}
        self.next(self.end)

    @step
    def end(self):
        print("best", self.best)

if __name__ == "__main__":
    Sweep()
"""


@pytest.fixture
def place(s3_server, s3, tmp_path):
    """The environment of processes that use the bucket, with a prefix of this test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FLOWBOOK_"))}
    prefix = s3().prefix.strip("/")
    more = {"FLOWBOOK_STORE": f"s3://tests/{prefix}", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    return {**kept, **s3_server.environment, **more}


def python(environment, *arguments, cwd, ok=True):
    done = subprocess.run([sys.executable, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


READ = """
import sys
from flowbook.client import Flow
run = Flow("Sweep").latest_run
print(run.successful, run["end"].task.data.best, sorted(run["join"].task.data.seen), len(run["start"].task.data.table))
print(sorted({"boto3", "botocore"} & set(sys.modules)))
"""


def test_a_flow_file_runs_is_read_and_resumed(place, tmp_path):
    (tmp_path / "flow.py").write_text(FLOW)
    told = python(place, "flow.py", "run", cwd=tmp_path)

    assert "best 300000" in told and "run 1 of Sweep succeeded" in told
    assert python(place, "-c", READ, cwd=tmp_path).split("\n")[:2] == ["True 300000 [100000, 200000, 300000] 100000", "[]"]
    assert "score 200000" in python(place, "flow.py", "logs", "1/train/1", cwd=tmp_path)
    assert "run 2 of Sweep succeeded" in python(place, "flow.py", "resume", cwd=tmp_path)
    assert (tmp_path / "config" / "flowbook" / "keys" / "default.key").stat().st_mode & 0o777 == 0o600


def test_without_the_key_a_run_is_shown_and_not_loaded(place, tmp_path, s3_server):
    (tmp_path / "flow.py").write_text(FLOW)
    python(place, "flow.py", "run", cwd=tmp_path)
    other = {**place, "FLOWBOOK_PROJECT_KEY": "the key of somebody else"}

    script = "from flowbook.client import Flow; task = Flow('Sweep').latest_run['join'].task; print(task['seen']); print(task.data.best); task.data.seen"
    told = python(other, "-c", script, cwd=tmp_path, ok=False)
    assert "300000" in told and "seen is not loaded: its result in s3://tests" in told and "could run anybody's code" in told

    resumed = python(other, "flow.py", "resume", cwd=tmp_path)
    assert "[2/train/1] score 200000" in resumed  # nothing was taken from the run that is not believed: its steps ran anew
    assert "[3/train" not in python(other, "flow.py", "resume", cwd=tmp_path)


MANY = """
from flowbook import FlowSpec, step

class Many(FlowSpec):
    @step
    def start(self):
        for i in range(970):
            setattr(self, f"a{i}", {i})
        self.items = list(range(30))
        self.next(self.each, foreach="items")

    @step
    def each(self):
        self.square = self.input**2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Many()
"""


def test_a_run_of_1000_artifacts_is_opened_in_5_requests_and_a_preview_takes_one(place, tmp_path, monkeypatch):
    (tmp_path / "flow.py").write_text(MANY)
    python(place, "flow.py", "run", cwd=tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    sent, exchange = [], Client._exchange
    monkeypatch.setattr(Client, "_exchange", lambda *given: sent.append(given[1:4]) or exchange(*given))

    metadata(f"{place['FLOWBOOK_STORE']}/default")
    try:
        run = Run("Many/1")
        assert run.successful and [step.id for step in run.steps()] == ["start", "each", "join", "end"]
        assert len(list(run["each"].tasks())) == 30
        assert len(sent) <= 5, sent

        sent.clear()
        assert run["start"].task.artifacts.a969.preview == "{969}" and len(list(run["start"].task)) >= 970
        assert len(sent) == 1, sent
    finally:
        metadata(None)


KERNEL = """
    import sys
    from IPython.testing.globalipapp import start_ipython
    shell = start_ipython()
    shell.run_line_magic("load_ext", "flowbook")

    def cell(text):
        result = shell.run_cell(text, store_history=True)
        result.raise_error()

    cell("%%flowstep start\\nimport array\\nrates = [1, 2, 3]\\ntable = array.array('d', range(100_000))")
    cell("%%flowstep train --foreach 'rate in rates'\\nscore = {rate * len(table)}")
    cell("%%flowstep pick --join train\\nbest = max(train, key=lambda task: max(task.score)).score\\ntop = [t.rate for t in train]")
    cell("%flow run --wait")
    cell("assert best == {300_000} and top == [1, 2, 3], best")
    cell("assert len(table) == 100_000")
    cell("%flow doctor")
    print("LOADED", sorted({"boto3", "botocore", "kubernetes", "s3transfer"} & set(sys.modules)))
"""


def test_a_notebook_s_steps_run_and_their_values_come_into_the_kernel(place, tmp_path):
    told = python(place, "-c", textwrap.dedent(KERNEL), cwd=tmp_path)

    assert "LOADED []" in told
    assert "create-if-absent is kept: 32 writers at once, 50 keys, one winner each" in told
    assert "rights below s3://tests" in told and "credentials of the environment (AWS_ACCESS_KEY_ID)" in told


HERE = """
    import json, sys
    from IPython.testing.globalipapp import start_ipython
    shell = start_ipython()
    shell.run_line_magic("load_ext", "flowbook")

    def cell(text):
        result = shell.run_cell(text, store_history=True)
        result.raise_error()
        return result.result
"""
MADE = """
    cell("%%flowstep start\\n" + "\\n".join(f"a{i} = {{{i}}}" for i in range(970)) + "\\nitems = list(range(30))\\nprint('made 970')")
    cell("%%flowstep each --foreach 'item in items'\\nsquare = {item ** 2}")
    cell("%%flowstep join --join each\\nmost = max(max(t.square) for t in each)")
    cell("%flow run --wait")
"""
TAKEN_UP = """
    from flowbook.store.s3_client import Client
    sent, exchange = [], Client._exchange
    Client._exchange = lambda *given: sent.append(given[1:4]) or exchange(*given)

    def counted(text):
        sent.clear()
        found = cell(text)
        print("\\n" + json.dumps({"text": text, "requests": len(sent), "value": repr(found)[:200], "sent": [" ".join(map(str, each[:2])) for each in sent]}))

    for text in TEXTS:
        counted(text)
"""


def counted(place, texts, cwd):
    """What a new kernel on another machine asked of the store for each of these cells, and what the cell gave."""
    code = textwrap.dedent(HERE) + f"TEXTS = {texts!r}\n" + textwrap.dedent(TAKEN_UP)
    told = python(
        {**place, "XDG_CACHE_HOME": str(cwd / "another machine"), "XDG_DATA_HOME": str(cwd / "another data")}, "-c", code, cwd=cwd
    )
    found = {one["text"]: one for one in map(json.loads, (line for line in told.splitlines() if line.startswith("{")))}
    return found | {"said": told}


@pytest.mark.parametrize("opens", ["%flow attach 1", "%flow at 1"])
def test_a_kernel_opens_a_run_of_1000_artifacts_in_5_requests_and_a_preview_takes_one(place, tmp_path, opens):
    python(place, "-c", textwrap.dedent(HERE) + textwrap.dedent(MADE), cwd=tmp_path)
    preview = "repr(get_ipython().user_ns['a969'])"
    found = counted(place, [opens, preview, "a968", "each[7].square"], tmp_path)

    assert found[opens]["requests"] <= 5, found[opens]
    assert ("made 970" in found["said"]) == ("attach" in opens), "what it printed comes back with its display"
    assert found[preview]["requests"] <= 1 and "{969}" in found[preview]["value"], found[preview]
    assert found["a968"]["value"] == "{968}" and found["a968"]["requests"] <= 2, found["a968"]
    assert found["each[7].square"]["value"] == "{49}", found["each[7].square"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"FLOWBOOK_STORE": "s3://nowhere/x"}, "there is no bucket 'nowhere'"),
        ({"FLOWBOOK_STORE": "s3://No_Bucket"}, "the path of a folder, or s3://BUCKET/PREFIX"),
        ({"FLOWBOOK_S3_ENDPOINT": "http://me:secret@localhost"}, "without a user or a password"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "does not know the credentials of the environment"),
        ({"FLOWBOOK_S3_REGION": "eu-west-9"}, "is not in the region 'eu-west-9'"),
    ],
)
def test_a_wrong_place_is_told_in_a_line_and_no_secret_with_it(place, tmp_path, change, told):
    (tmp_path / "flow.py").write_text(FLOW)
    said = python({**place, **change}, "flow.py", "run", cwd=tmp_path, ok=False)

    assert told in said and "Traceback" not in said
    assert "not-a-secret-of-anybody" not in said


def test_no_secret_is_in_the_bucket(place, tmp_path, s3_server):
    from tests.stores.s3_server import SECRET

    (tmp_path / "flow.py").write_text(FLOW)
    python(place, "flow.py", "run", cwd=tmp_path)
    key = (tmp_path / "config" / "flowbook" / "keys" / "default.key").read_text().strip()
    folder = s3_server.folder / "tests" / place["FLOWBOOK_STORE"].rpartition("/")[2]
    files = [path for path in folder.rglob("*") if path.is_file()]

    assert any(path.name.endswith("run.json") for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes() or key.encode() in path.read_bytes()]
    assert json.loads((folder / "default" / layout.STORE).read_text())["format"] == 1
