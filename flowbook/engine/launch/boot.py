"""The first code in a pod, given to its python3 by -c: fetches flowbook's runtime from the store and lets it run the attempt.

Only the standard library, since the image is the user's; old Pythons parse it, too, so that they can be told they are too old. Reads
FLOWBOOK_POD: {"store", "runtime": sha256 of the runtime's blob, "order": key, …}. Exit code 78: it could not even begin, and says why.
"""
# ruff: noqa: PTH103, PTH118, PTH123, T201, UP036

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import signal
import sys
import time
import urllib.parse

TRIES = 8
SERVICE_ACCOUNT = "See to the role of its service account (kubernetes_service_account), or name a Secret with keys in kubernetes_secret."
BUSY = (429, 500, 502, 503, 504)


def give_up(message: str) -> None:
    print("flowbook: " + message, file=sys.stderr, flush=True)
    sys.exit(78)


def ask(place: str, headers: dict, body: bytes | None = None) -> tuple:  # type: ignore[type-arg]
    """(status, data) of one request; urllib.request would cost every pod some ms of imports. Raises OSError, HTTPException."""
    parts = urllib.parse.urlsplit(place)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=60)
    path = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    connection.request("POST" if body else "GET", path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, data


def words(data: bytes) -> str:
    """What an answer of AWS's kind says."""
    said = data[:2000].decode("utf-8", "replace")
    if "<Message>" in said:
        said = ": ".join(said.partition(f"<{tag}>")[2].partition("<")[0] for tag in ("Code", "Message"))
    return said


def insist(send) -> tuple:  # type: ignore[type-arg, no-untyped-def]
    """(status, data, error) of what `send` got at last, tried again as long as the server is busy or not reached."""
    for tried in range(TRIES):
        if tried:
            time.sleep(min(0.2 * 2 ** (tried - 1), 10))
        status, data, error = 0, b"", None
        try:
            status, data = send()
        except (OSError, http.client.HTTPException) as caught:
            error = caught
        if error is None and status not in BUSY:
            break
    return status, data, error


def granted(who: str, place: str, headers: dict, body: bytes | None = None) -> bytes:  # type: ignore[type-arg]
    """What whoever gives credentials has answered."""
    status, data, error = insist(lambda: ask(place, headers, body))
    if status == 200:
        return bytes(data)
    why = f"refuses it ({status}): {words(data)}" if error is None else f"cannot be reached: {error}"
    give_up(f"{who} gives this pod no credentials for the store: {place} {why}. {SERVICE_ACCOUNT}")
    return b""


def held(path: str) -> str:
    """The token in a file that the cluster puts into the pod."""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        give_up(
            f"this pod has no credentials for the store: the token of its role, {path}, cannot be read: {error.strerror}. {SERVICE_ACCOUNT}"
        )
    return ""


def credentials() -> tuple:  # type: ignore[type-arg]
    """(key, secret, token): of the environment (a Secret), else of the pod's own identity on EKS."""
    env = os.environ
    if env.get("AWS_ACCESS_KEY_ID"):
        return env["AWS_ACCESS_KEY_ID"], env.get("AWS_SECRET_ACCESS_KEY", ""), env.get("AWS_SESSION_TOKEN")
    if env.get("AWS_WEB_IDENTITY_TOKEN_FILE") and env.get("AWS_ROLE_ARN"):
        token = held(env["AWS_WEB_IDENTITY_TOKEN_FILE"])
        wish = {"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleSessionName": "flowbook"}
        wish.update(RoleArn=env["AWS_ROLE_ARN"], WebIdentityToken=token)
        place = env.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{env.get('AWS_REGION') or 'us-east-1'}.amazonaws.com/"
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = granted(f"the role {env['AWS_ROLE_ARN']}", place, kind, urllib.parse.urlencode(wish).encode()).decode()
        return tuple(answer.partition(f"<{tag}>")[2].partition("<")[0] for tag in ("AccessKeyId", "SecretAccessKey", "SessionToken"))
    if env.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        headers = {}
        if env.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            headers["Authorization"] = held(env["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
        found = json.loads(granted("the pod's role", env["AWS_CONTAINER_CREDENTIALS_FULL_URI"], headers))
        return found["AccessKeyId"], found["SecretAccessKey"], found.get("Token")
    give_up(
        "this pod has no credentials for the store: neither AWS_ACCESS_KEY_ID nor a role of its service account. "
        "Name a Secret that holds them in the setting kubernetes_secret, or a service account with a role in kubernetes_service_account."
    )
    return ()


def signed(store: dict, key: str) -> tuple:  # type: ignore[type-arg]
    """(URL, headers) of a GET of an object, signed (AWS Signature Version 4)."""
    env = os.environ
    access, secret, token = credentials()
    region = store.get("region") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
    parts = urllib.parse.urlsplit(store["endpoint"])
    inside = "{bucket}" in parts.netloc  # else the bucket stands in the path
    parts = parts._replace(netloc=parts.netloc.replace("{bucket}", store["bucket"]))
    path = f"/{key}" if inside else f"/{store['bucket']}/{key}"
    path = urllib.parse.quote(parts.path.rstrip("/") + path, safe="/-_.~")
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    empty = hashlib.sha256(b"").hexdigest()
    headers = {"host": parts.netloc, "x-amz-content-sha256": empty, "x-amz-date": now}
    if token:
        headers["x-amz-security-token"] = token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    hashed = hashlib.sha256("\n".join(["GET", path, "", lines, names, empty]).encode()).hexdigest()
    signature = ("AWS4" + secret).encode()
    for part in (*scope.split("/"), "\n".join(["AWS4-HMAC-SHA256", now, scope, hashed])):
        signature = hmac.new(signature, part.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature.hex()}"
    return f"{parts.scheme}://{parts.netloc}{path}", headers


def fetch(store: dict, key: str, secret: str = "") -> bytes:  # type: ignore[type-arg]
    """`secret`: the name of the Secret with the credentials, for who has to correct them."""
    if store["kind"] == "files":
        with open(store["root"] + "/" + key, "rb") as file:
            return file.read()
    key = "/".join(part for part in (store.get("prefix", "").strip("/"), key) if part)
    place = f"{store['endpoint'].replace('{bucket}', store['bucket'])} (bucket {store['bucket']})"
    source = f": correct the Secret {secret} (kubernetes_secret)" if secret else " (kubernetes_secret, kubernetes_service_account)"
    status, data, error = insist(lambda: ask(*signed(store, key)))
    if error is not None:
        give_up(f"the store {place} cannot be reached from this pod: {error}. Is its address one that pods can use?")
    if status != 200:
        mend = "" if status in BUSY else f" Look at the credentials that pods get{source}."
        give_up(f"the store {place} does not give {key} to this pod ({status}): {words(data).rstrip('.')}.{mend}")
    return bytes(data)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))  # a container's first process would not hear it
    told = json.loads(os.environ.pop("FLOWBOOK_POD"))
    if sys.version_info < (3, 11):
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        give_up(f"the image has Python {here}; flowbook needs 3.11 or later. Name another image with --image (@kubernetes(image=…)).")
    runtime = told["runtime"]
    data = fetch(told["store"], f"blobs/{runtime[:2]}/{runtime}", told.get("credentials", ""))
    if hashlib.sha256(data).hexdigest() != runtime:
        give_up("the runtime in the store is damaged: a new run writes it anew.")
    os.umask(0o077)
    home = os.environ.get("HOME", "/tmp")
    os.makedirs(os.environ.get("TMPDIR", home), exist_ok=True)
    place = os.path.join(home, f"runtime-{runtime[:12]}.zip")
    with open(place, "wb") as file:
        file.write(data)
    sys.path[:] = [path for path in sys.path if path]  # not the folder that the image happens to start in
    sys.path.insert(0, place)
    import importlib

    importlib.import_module("flowbook.worker.pod").main(told)


if __name__ == "__main__":
    main()
