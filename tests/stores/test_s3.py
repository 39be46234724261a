"""What only a store in a bucket can show, against a real S3 server; faults are made by a proxy before it."""

import hashlib
import json
import os
import socket
import subprocess
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from flowbook.engine.doctor.storage import contest
from flowbook.errors import ArtifactError, StoreError, StoreMissing, StoreReadOnly, StoreTooNew
from flowbook.store import codec, garbage, layout, s3_client, trust
from flowbook.store import s3 as module
from flowbook.store.base import open_store
from flowbook.store.memory import MemoryStore
from flowbook.store.s3 import S3Store
from flowbook.store.s3_cache import Cache
from flowbook.store.s3_check import check
from flowbook.store.s3_client import authorization
from flowbook.store.s3_credentials import Credentials
from tests.stores.fault_proxy import between

BIG = os.urandom(1000) * 40_000  # 40 MB: three parts


@pytest.fixture
def proxy(s3_server):
    with between(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def behind(s3, proxy, monkeypatch):
    """A store that is reached through the proxy; it was used already, so that it knows its format."""
    monkeypatch.setattr(s3_client, "LONGEST_PAUSE_S", 0.05)
    store = s3(endpoint=proxy.endpoint)
    store.create("first", b"")
    proxy.seen.clear()
    return store


def first_time(what, method, part):
    """A fault for the first request of a method whose path has that part."""
    met = []

    def fault(asked, path, headers):
        if asked == method and part in path and not met:
            met.append(path)
            return what
        return None

    return fault


def requests(store, monkeypatch):
    """A list to which each request of a store is added."""
    found, exchange = [], store.client._exchange
    monkeypatch.setattr(store.client, "_exchange", lambda method, key, *rest: found.append((method, key)) or exchange(method, key, *rest))
    return found


# ---- what a create may be told ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lose", "cut", (503, "SlowDown"), (500, "InternalError"), (409, "ConditionalRequestConflict")])
def test_a_create_that_is_repeated_is_told_true_by_whatever_way_it_got_there(behind, proxy, fault):
    proxy.fault = first_time(fault, "PUT", "/made")

    assert behind.create("made", b"mine") is True
    assert behind.get("made") == b"mine" and behind.create("made", b"mine") is False


def test_a_create_whose_answer_was_lost_is_told_false_if_another_was_first(behind, proxy, s3):
    other = s3()

    def fault(method, path, headers):
        if method == "PUT" and "/made" in path and not other.exists("made"):
            other.create("made", b"same")  # the same bytes: only the mark of the writer tells whose it is
            return "cut"
        return None

    proxy.fault = fault
    assert behind.create("made", b"same") is False


@pytest.mark.parametrize("fault", ["lose", "cut", (500, "InternalError"), b"<Error><Code>InternalError</Code></Error>"])
def test_the_completion_of_a_large_object_is_repeated_too(behind, proxy, fault):
    proxy.fault = first_time(fault, "POST", "/big?uploadId")

    assert behind.create("big", [BIG]) is True
    assert behind.size("big") == len(BIG)


def test_a_large_object_that_another_wrote_meanwhile_stays(behind, proxy, s3):
    other = s3()
    proxy.fault = lambda method, path, headers: (
        other.create("big", b"theirs") and None if method == "POST" and "/big?uploads" in path else None
    )

    assert behind.create("big", [BIG]) is False
    assert behind.get("big") == b"theirs" and behind.sweep(0.0) == 0


def test_parts_and_ranges_that_are_lost_are_sent_again(behind, proxy):
    parts, ranges = first_time("cut", "PUT", "partNumber=2"), first_time("half", "GET", layout.blob("")[:6])
    proxy.fault = lambda *asked: parts(*asked) or ranges(*asked)
    address = behind.put_blob([BIG])

    assert address == hashlib.sha256(BIG).hexdigest()
    assert hashlib.sha256(behind.open(layout.blob(address))).hexdigest() == address


def test_a_busy_server_is_asked_again_until_time_is_up(behind, proxy):
    behind.client.deadline_s = 0.5
    proxy.fault = lambda method, path, headers: (503, "SlowDown")

    with pytest.raises(StoreError, match=r"too busy or broken: it kept answering SlowDown"):
        behind.get("first")
    assert len(proxy.seen) > 2


def test_an_error_in_the_midst_of_a_large_object_leaves_nothing(behind):
    def broken():
        yield BIG
        raise RuntimeError("the source died")

    with pytest.raises(RuntimeError, match="source died"):
        behind.create("big", broken())
    assert not behind.exists("big") and behind.sweep(0.0) == 0


def test_uploads_that_killed_writers_left_are_given_up_by_age(s3):
    store = s3()
    store.create("a", b"")
    store._begin(store._path("left"), {})

    assert store.sweep() == 0
    assert store.sweep(0.0, dry_run=True) == 1 and store.sweep(0.0) == 1 and store.sweep(0.0) == 0


# ---- servers that do not keep the promise --------------------------------------------------------------------------------------------------


def test_a_server_without_conditional_writes_is_refused(proxy, s3):
    proxy.fault = lambda method, path, headers: (501, "NotImplemented") if "if-none-match" in headers else None

    with pytest.raises(StoreError, match=r"does not keep `If-None-Match: \*` \(it answers NotImplemented\)"):
        s3(endpoint=proxy.endpoint).create("a", b"")


def test_a_server_that_passes_over_conditions_is_found_out_by_the_first_write(proxy, s3):
    proxy.fault = lambda method, path, headers: "unconditional" if "if-none-match" in headers else None

    for _ in range(2):  # the second process, too
        with pytest.raises(StoreError, match="takes such a request and overwrites what is there"):
            s3(endpoint=proxy.endpoint).create("a", b"")


def test_the_contest_of_doctor_passes_here_and_catches_a_store_that_looks_before_it_writes(s3):
    class Racy(S3Store):
        def create(self, key, data):
            if self.exists(key):
                return False
            self.put(key, data)
            return True

    assert contest(s3, writers=32, keys=50) == []

    place = s3().describe()
    place.pop("kind")
    wrong = contest(lambda: Racy(**place), writers=32, keys=5)
    assert wrong and "were told that they had created one key" in wrong[0]


# ---- bad places and bad rights ----------------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_named(s3):
    for use in (lambda store: store.get("a"), lambda store: store.create("a", b""), lambda store: list(store.list(""))):
        with pytest.raises(StoreError, match="there is no bucket 'nowhere' at http"):
            use(s3("nowhere"))


def test_missing_and_half_credentials_are_told(s3, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="AWS_SECRET_ACCESS_KEY is not set"):
        s3().get("a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(StoreError, match="no credentials for S3: neither in the environment nor"):
        s3().get("a")
    with pytest.raises(StoreError, match="no credentials for S3: The config profile .nobody. could not be found"):
        s3(profile="nobody").get("a")


def test_a_profile_gives_credentials_and_the_environment_is_passed_over(s3, monkeypatch, tmp_path):
    from tests.stores.s3_server import KEY, SECRET

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    file = tmp_path / "credentials"
    file.write_text(f"[research]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    store = s3(profile="research")
    assert store.create("a", b"x") and store.get("a") == b"x"
    with pytest.raises(StoreError, match=r"does not know the credentials of the environment \(AWS_ACCESS_KEY_ID\)"):
        s3().get("a")


@pytest.mark.parametrize(
    ("code", "status", "method", "told"),
    [
        ("ExpiredToken", 400, "get", r"have ended .*aws sso login"),
        ("AccessDenied", 403, "get", r"no right to s3:GetObject on arn:aws:s3:::tests/.*/a \(or s3:ListBucket"),
        ("AccessDenied", 403, "list", r"no right to s3:ListBucket on arn:aws:s3:::tests "),
        ("PermanentRedirect", 301, "get", r"not in the region 'us-east-1'"),
        ("KMS.DisabledException", 400, "get", r"key for encryption cannot be used"),
        ("Strange", 418, "get", r"GET of .*/a was refused: Strange"),
    ],
)
def test_refusals_say_what_to_do(behind, proxy, code, status, method, told):
    proxy.fault = lambda *asked: (status, code)

    with pytest.raises(StoreError, match=told):
        behind.get("a") if method == "get" else list(behind.list("a"))


def test_a_write_without_the_right_to_it_is_read_only(behind, proxy):
    proxy.fault = lambda method, path, headers: (403, "AccessDenied") if method in ("PUT", "DELETE") else None

    with pytest.raises(StoreReadOnly, match=r"s3:PutObject on arn:aws:s3:::tests/.*/a"):
        behind.create("a", b"")
    with pytest.raises(StoreReadOnly, match="s3:DeleteObject"):
        behind.delete("a")


def test_a_wrong_region_is_told(s3):
    with pytest.raises(StoreError, match=r"is not in the region 'eu-west-9'"):
        s3(region="eu-west-9").get("a")


def test_a_wrong_address_is_told_soon(s3):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(StoreError, match=r"cannot be reached .* nothing listens there"):
            s3(endpoint=f"http://127.0.0.1:{free.getsockname()[1]}", deadline_s=0.3).get("a")


def test_an_address_with_the_bucket_in_it_is_told_with_the_buckets_name(s3, monkeypatch):
    def unknown(*asked, **more):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for place, address in (
        ({"endpoint": "http://{bucket}.s3.example.org"}, "http://tests.s3.example.org"),
        ({}, "https://tests.s3.us-east-1."),
    ):
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        with pytest.raises(StoreError, match=r"cannot be reached .* there is no such host") as told:
            s3(**{"endpoint": "", "deadline_s": 0.1} | place).get("a")
        assert address in str(told.value) and "{bucket}" not in str(told.value)


def test_plain_http_behind_https_and_an_unknown_certificate_are_told(s3, s3_server, tmp_path):
    with pytest.raises(StoreError, match=r"does not speak TLS.*is it http:// rather"):
        s3(endpoint=s3_server.endpoint.replace("http:", "https:")).get("a")

    import ssl

    pair = tmp_path / "pair.pem"
    subprocess.run(
        [*"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout".split(), pair, "-out", tmp_path / "cert.pem"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", pair)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            try:
                context.wrap_socket(listening.accept()[0], server_side=True).close()
            except OSError:
                pass  # the client does not go on: that is what is tested

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(StoreError, match=r"certificate is not trusted: .*AWS_CA_BUNDLE"):
            s3(endpoint=f"https://127.0.0.1:{listening.getsockname()[1]}").get("a")
        thread.join(30)


@pytest.mark.parametrize("place", [{"endpoint": "localhost:9000"}, {"endpoint": "http://me:secret@host"}, {"encryption": "rot13"}])
def test_a_place_that_cannot_be_one_is_refused_and_no_password_is_repeated(s3, place):
    with pytest.raises(StoreError) as told:
        s3(**place)
    assert "secret" not in str(told.value)


def test_a_store_of_a_later_flowbook_is_refused(s3):
    store = s3()
    store.client.send("PUT", store.prefix + layout.STORE, body=[json.dumps({"format": 99, "written_by": "9.9"}).encode()])

    with pytest.raises(StoreTooNew, match=r"flowbook 9.9 \(format 99\)"):
        store.get("a")
    store.client.send("PUT", store.prefix + layout.STORE, body=[b"{}"])
    with pytest.raises(StoreError, match="store.json is damaged"):
        s3().create("a", b"")


def test_doctor_names_what_is_there_and_each_right_that_lacks(s3, behind, proxy, monkeypatch):
    assert {state for state, _, _ in check(s3())} == {"ok"}
    assert any("write, read, list, upload in parts, remove" in text for _, text, _ in check(s3()))
    assert [state for state, text, _ in check(s3("nowhere"))][-1] == "bad"

    proxy.fault = lambda method, path, headers: (403, "AccessDenied") if "list-type" in path else None
    bad = [text for state, text, _ in check(behind) if state == "bad"]
    assert len(bad) == 1 and "s3:ListBucket" in bad[0]

    found = [text for state, text, _ in check(s3(encryption="AES256")) if state == "bad"]
    assert len(found) == 1 and "what is written is not encrypted" in found[0]  # this server knows no encryption, and says nothing


# ---- descriptions and secrets -------------------------------------------------------------------------------------------------------------------


def test_another_process_opens_the_store_from_its_description_which_holds_no_secret(s3, tmp_path):
    from tests.stores.s3_server import SECRET

    store = s3(key_file=str(tmp_path / "key"))
    store.create("a", b"x")
    told = json.dumps(store.describe())

    assert open_store(json.loads(told)).get("a") == b"x"
    assert SECRET not in told + repr(store) + repr(vars(store)) + repr(vars(store.client))
    for wrong in ({"kind": "s3"}, {"kind": "s3", "bucket": 1}, {"kind": "s3", "bucket": "b", "secret": "x"}):
        with pytest.raises(StoreError, match="S3 store needs a bucket"):
            open_store(wrong)


def test_a_forked_process_uses_connections_of_its_own(s3):
    store = s3()
    store.create("a", b"parent")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if store.get("a") == b"parent" and store.create("child", b"") else 1)

    assert store.get("a") == b"parent"
    assert os.waitpid(pid, 0)[1] == 0 and store.exists("child")


def test_a_signature_is_what_amazon_s_example_says():
    found = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    empty = hashlib.sha256(b"").hexdigest()
    headers = {
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": empty,
        "x-amz-date": "20130524T000000Z",
    }

    # https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Object"
    line = authorization(found, "us-east-1", "20130524T000000Z", "GET", "/test.txt", "", headers, empty)
    assert line.endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_a_clock_that_is_wrong_is_corrected_by_the_server_s(s3, monkeypatch):
    monkeypatch.setattr(s3_client.time, "time", lambda now=time.time: now() + 3600)

    assert s3().create("a", b"")


# ---- keeping, listing, ages ----------------------------------------------------------------------------------------------------------------------


def test_a_blob_that_is_used_again_after_a_while_is_young_again_without_being_sent(s3, s3_server, monkeypatch):
    store = s3()
    key = layout.blob(store.put_blob([b"x" * 2_000_000]))
    two_days_ago = time.time() - 48 * 3600
    os.utime(s3_server.folder / "tests" / store.prefix / key, (two_days_ago, two_days_ago))
    assert next(iter(store.aged("blobs/"))).age_s > 47 * 3600
    sent = requests(store, monkeypatch)

    assert store.keep(key) and [method for method, _ in sent] == ["HEAD", "POST", "PUT", "POST"]
    sent.clear()
    assert store.keep(key) and [method for method, _ in sent] == ["HEAD"]
    assert next(iter(store.aged("blobs/"))).age_s < 3600
    assert store.get(key) == b"x" * 2_000_000 and not store.keep("blobs/00/none") and store.sweep(0.0) == 0
    assert store._copy_onto_itself("blobs/00/none", 5) is False and store.sweep(0.0) == 0


def test_listings_go_on_over_pages(s3, monkeypatch):
    store = s3()
    keys = [f"many/{i:02d}/x" for i in range(25)]
    for key in keys:
        store.create(key, b"")
    sent = requests(store, monkeypatch)
    exchange = store.client._exchange
    monkeypatch.setattr(
        store.client,
        "_exchange",
        lambda m, k, query, *more: exchange(m, k, {**query, "max-keys": "10"} if "prefix" in query else query, *more),
    )

    assert list(store.list("many/")) == keys and len(sent) == 3
    assert list(store.names("many")) == [f"{i:02d}" for i in range(25)]
    store.delete_folder("many")
    assert list(store.list("")) == []


# ---- a part of an array --------------------------------------------------------------------------------------------------------------------------


def test_rows_of_a_large_array_are_read_without_the_rest(s3, monkeypatch):
    array = np.arange(3_000_000, dtype="<f4").reshape(30_000, 10, 10)
    store = s3()
    entry = json.loads(json.dumps(codec.entry(store, "a", array)))
    received, exchange = [], store.client._exchange

    def counted(*given):
        answer = exchange(*given)
        received.append(len(answer.body))
        return answer

    monkeypatch.setattr(store.client, "_exchange", counted)
    for start, stop in ((1000, 1010), (None, 2), (-3, None), (29_999, 10**9), (5, 5), (9, 3)):
        received.clear()
        part = codec.rows(store, entry, start, stop)
        assert np.array_equal(part, array[start:stop]) and part.dtype == array.dtype and part.shape == array[start:stop].shape
        assert len(received) <= 2 and sum(received) < 10_000


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_rows_are_told_only_of_what_has_them(s3, kind, tmp_path):
    store = s3(key_file=str(tmp_path / "key")) if kind == "s3" else MemoryStore()
    small = codec.entry(store, "a", np.arange(7, dtype=">i2"))
    assert np.array_equal(codec.rows(store, small, 2, 4), np.arange(2, 4))
    whole = codec.entry(store, "a", np.zeros((0, 3)))
    assert codec.rows(store, whole).shape == (0, 3)

    for other in (np.asfortranarray(np.ones((99, 99))), np.array([None, {}]), np.zeros(999, "i4,f8"), np.float64(1), {1}):
        with pytest.raises(ArtifactError, match="run.x cannot be read in part: it is of type"):
            codec.rows(store, codec.entry(store, "x", other), 0, 3, name="run.x")


# ---- the cache -----------------------------------------------------------------------------------------------------------------------------------


def test_a_blob_is_fetched_once_and_then_mapped_from_this_machine(s3, monkeypatch):
    store = s3()
    store.create("first", b"")
    tracemalloc.start()
    address = store.put_blob([memoryview(BIG)[:100], memoryview(BIG)[100:]])
    key = layout.blob(address)
    first = store.open(key)
    assert tracemalloc.get_traced_memory()[1] < len(BIG) / 4  # neither way is there a copy of the whole
    tracemalloc.stop()
    assert store.local_path(key).stat().st_mode & 0o777 == 0o400
    first[0] ^= 0xFF  # private: nobody else sees it
    sent = requests(store, monkeypatch)

    assert hashlib.sha256(store.open(key)).hexdigest() == address
    assert store.get_range(key, 10, 14) == BIG[10:14] and store.local_path(key).stat().st_size == len(BIG)
    assert sent == []


def test_a_commit_is_read_once_and_not_taken_for_that_of_a_store_that_was_here_before(s3, monkeypatch):
    key = layout.commit("f", "1", "a", ())
    store = s3()
    store.create(key, b"old")
    assert store.get(key) == store.get(key) == b"old"
    store.delete_folder("flows")
    store.client.send("DELETE", store.prefix + layout.STORE)

    new = s3()
    new.create(key, b"new")
    assert new.get(key) == b"new"
    sent = requests(new, monkeypatch)
    assert new.get(key) == b"new" and sent == []
    new.delete(key)
    with pytest.raises(StoreMissing):
        new.get(key)


@pytest.mark.parametrize("size", [100, 40_000_000])
def test_damaged_content_is_fetched_again_and_then_told(s3, s3_server, size):
    store = s3()
    address = store.put_blob([BIG[:size]])
    key = layout.blob(address)
    stored = s3_server.folder / "tests" / store.prefix / key
    with stored.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"~!~")

    for read in (store.open, store.get):
        with pytest.raises(ArtifactError, match=f"{key} in s3://tests/.* is damaged"):
            read(key)
    assert not list(Path(store.local_dir()).rglob(address))


def test_content_that_was_damaged_on_its_way_is_fetched_again(behind, proxy):
    address = behind.put_blob([b"x" * 5000])
    proxy.fault = first_time(b"y" * 5000, "GET", "/blobs/")

    assert bytes(behind.open(layout.blob(address))) == b"x" * 5000


def test_the_cache_forgets_what_was_used_longest_ago(tmp_path):
    cache = Cache(tmp_path, most_bytes=10_000)
    for i in range(8):
        cache.write(f"blobs/{i}", [bytes(2000)])
        os.utime(tmp_path / "blobs" / str(i), (i, i))
    held = cache.map("blobs/7")
    left = sorted(path.name for path in (tmp_path / "blobs").iterdir())

    assert "7" in left and "0" not in left and len(left) <= 6
    cache.write("blobs/huge", [bytes(9000)])
    assert cache.map("blobs/huge") is None and len(held) == 2000


def test_without_a_place_for_files_it_works_from_memory(s3, monkeypatch):
    store = s3(cache_bytes=0)
    address = store.put_blob([BIG])

    assert hashlib.sha256(store.open(layout.blob(address))).hexdigest() == address
    assert store.local_path(layout.blob(address)) is None


def test_pieces_of_any_size_make_parts_that_s3_takes(monkeypatch):
    monkeypatch.setattr(module, "PART_BYTES", 100)
    monkeypatch.setattr(module, "SMALL_PIECE", 10)
    for pieces in ([b""], [], [b"abc"] * 99, [b"x" * 1234, b"y", b"z" * 100], iter([bytearray(b"q" * 50)] * 7)):
        pieces = list(pieces) if not isinstance(pieces, list) else pieces
        parts = list(module._parts(iter(pieces)))
        assert b"".join(map(b"".join, parts)) == b"".join(pieces)
        assert all(sum(map(len, part)) == 100 for part in parts[:-1]) and len(parts) >= 1


# ---- roles ----------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def role_server():
    """Answers each request with the next of `answers`: (status, body). `asked` are the requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            server.asked.append((self.path, body, self.headers.get("authorization")))
            status, text = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def of_container(secret):
    from tests.stores.s3_server import KEY

    return json.dumps({"AccessKeyId": KEY, "SecretAccessKey": secret, "Token": "", "Expiration": "2099-01-01T00:00:00Z"})


def test_a_pod_s_own_role_is_asked_of_sts_once(s3, role_server, monkeypatch, tmp_path):
    from tests.stores.s3_server import KEY, SECRET

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "token").write_text("identity\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/steps")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{role_server.server_address[1]}")
    given = f"<AccessKeyId>{KEY}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken></SessionToken>"
    role_server.answers = [(503, "busy"), (200, f"<R>{given}<Expiration>2099-01-01T00:00:00Z</Expiration></R>")]
    store = s3()

    assert store.create("a", b"x") and store.get("a") == b"x"
    assert len(role_server.asked) == 2
    assert "Action=AssumeRoleWithWebIdentity" in role_server.asked[0][1] and "WebIdentityToken=identity" in role_server.asked[0][1]
    role_server.answers = [(403, "<E><Message>Not authorized to perform sts:AssumeRoleWithWebIdentity</Message></E>")]
    with pytest.raises(StoreError, match=r"the role arn:aws:iam::1:role/steps is refused by .* Not authorized"):
        s3().get("a")
    (tmp_path / "token").unlink()
    with pytest.raises(StoreError, match="AWS_WEB_IDENTITY_TOKEN_FILE .* cannot be read"):
        s3().get("a")


def test_credentials_that_have_ended_are_asked_for_again_and_told_if_that_does_not_help(behind, s3, role_server, proxy, monkeypatch):
    from tests.stores.s3_server import SECRET

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{role_server.server_address[1]}/role")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod")
    monkeypatch.setattr("flowbook.store.s3_credentials.LEAST_S", 0.0)
    role_server.answers = [(200, of_container(SECRET))]
    store = s3(endpoint=proxy.endpoint)
    assert store.get("first") == b"" and role_server.asked == [("/role", "", "pod")]

    proxy.fault = first_time((400, "ExpiredToken"), "GET", "/first")
    assert store.get("first") == b"" and len(role_server.asked) == 2
    proxy.fault = lambda method, path, headers: (400, "ExpiredToken")
    with pytest.raises(StoreError, match=r"the credentials of the container's role have ended"):
        store.get("first")
    role_server.answers = [(200, "not JSON")]
    with pytest.raises(StoreError, match="did not answer with any"):
        s3().get("first")


def test_old_runs_and_what_only_they_used_are_collected_as_from_files(s3, tmp_path):
    store = s3(key_file=str(tmp_path / "key"))
    for run in ("1", "2"):
        key = layout.commit("f", run, "a", ())
        entry = codec.entry(store, "x", {"x": run * 50_000})
        store.create(key, trust.sign(store, key, {"v": 1, "artifacts": {"x": entry}}))
        store.create(layout.spec("f", run), b'{"flow":"f","steps":[]}')
        store.create(layout.log("f", run, 0), b'{"events":[{"e":"run_ended","at":1,"state":"succeeded"}]}')
    store._begin(store._path("left"), {})

    report = garbage.collect(store, 1, "f", min_age_s=0.0)
    assert report.removed == [("f", "1")] and report.blobs == 1 and not report.troubles and not report.damaged
    assert store.names("flows/f") == ["2"] and len(list(store.list("blobs/"))) == 1 and store.sweep(0.0) == 0
