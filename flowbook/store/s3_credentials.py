"""Who asks: the credentials with which requests are signed. They are found when they are first needed, and never shown.

    AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, unless a profile is named      read here
    AWS_WEB_IDENTITY_TOKEN_FILE (a pod's own role: IRSA)                        asked of STS here
    AWS_CONTAINER_CREDENTIALS_FULL_URI, …_RELATIVE_URI (EKS, ECS)               asked here
    all else: profiles, SSO, the node's role                                    botocore finds and renews them

The second and third are here because a pod of a stock image has no botocore. What is renewed is asked for some minutes before it
ends, or when the server says that it has ended: whichever clock is wrong, one of the two helps.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from flowbook.errors import StoreError
from flowbook.store import s3_errors as told

EARLY_S = 300.0  # before their end, by which credentials are asked for anew
LEAST_S = 30.0  # between two renewals that the server asked for


class Credentials(NamedTuple):
    """`ends_at`: seconds since the epoch, None for those that do not end or are renewed by somebody else."""

    access_key: str
    secret_key: str
    token: str = ""
    ends_at: float | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key[:4]}…)"


@dataclass
class Source:
    """Where the credentials of one store come from. `profile` None: the environment comes first."""

    profile: str | None = None
    kind: str = ""  # in words, once they were found
    _found: Credentials | None = field(default=None, repr=False)
    _session: Any = field(default=None, repr=False)  # botocore's, renewing by itself
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _asked_at: float = float("-inf")

    def get(self) -> Credentials:
        """Raises StoreError where there are none."""
        if self._session is not None:
            return self._frozen()
        found = self._found
        if found is not None and (found.ends_at is None or found.ends_at - time.time() > EARLY_S):
            return found
        with self._lock:
            if self._found is found:  # else another thread was faster
                self._found, self._asked_at = self._find(), time.monotonic()
            assert self._found is not None
            return self._found

    def renew(self) -> bool:
        """After the server said that they have ended: whether there may be others now."""
        with self._lock:
            if self._found is not None and self._found.ends_at is None and self._session is None:
                return False  # those of the environment: this process cannot be given others
            if time.monotonic() - self._asked_at < LEAST_S:
                return False
            self._asked_at, self._found, self._session = time.monotonic(), None, None
            return True

    def _find(self) -> Credentials:
        environ = os.environ
        if self.profile is None:
            key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
            if key and secret:
                self.kind = "the environment (AWS_ACCESS_KEY_ID)"
                return Credentials(key, secret, environ.get("AWS_SESSION_TOKEN", ""))
            if key or secret:
                lacks = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
                raise StoreError(f"no credentials for S3: {lacks} is not set, though the other of the two is. Set both, or none.")
            if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") and environ.get("AWS_ROLE_ARN"):
                self.kind = f"the role {environ['AWS_ROLE_ARN']} (web identity)"
                return _web_identity(environ["AWS_WEB_IDENTITY_TOKEN_FILE"], environ["AWS_ROLE_ARN"])
            if environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") or environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
                self.kind = "the container's role"
                return _container()
        return self._from_botocore()

    def _from_botocore(self) -> Credentials:
        name = f"the profile {self.profile!r}" if self.profile else "the configuration of the AWS tools"
        try:
            import botocore.exceptions
            import botocore.session
        except ModuleNotFoundError:
            raise StoreError(
                f"no credentials for S3 in the environment, and {name} cannot be read without botocore. "
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or: pip install 'flowbook[s3]'"
            ) from None
        try:
            found = botocore.session.Session(profile=self.profile).get_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise StoreError(f"no credentials for S3: {error}. Look at s3_profile in the settings, and at ~/.aws.") from error
        if found is None:
            raise StoreError(
                f"no credentials for S3: neither in the environment nor in {name}. "
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile: s3_profile in the settings."
            )
        self.kind, self._session = f"{name} ({found.method})", found
        return self._frozen()

    def _frozen(self) -> Credentials:
        try:
            found = self._session.get_frozen_credentials()
        except Exception as error:  # botocore lets through what its many sources raise
            raise StoreError(f"the credentials of {self.kind} cannot be renewed: {error}. If it is SSO: aws sso login") from error
        return Credentials(found.access_key, found.secret_key, found.token or "")


def _web_identity(token_file: str, role: str) -> Credentials:
    """AssumeRoleWithWebIdentity: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html"""
    try:
        token = Path(token_file).read_text().strip()
    except OSError as error:
        raise StoreError(f"no credentials for S3: AWS_WEB_IDENTITY_TOKEN_FILE {token_file} cannot be read: {error.strerror}") from error
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    place = os.environ.get("AWS_ENDPOINT_URL_STS") or (f"https://sts.{region}.amazonaws.com" if region else "https://sts.amazonaws.com")
    session = os.environ.get("AWS_ROLE_SESSION_NAME") or f"flowbook-{os.getpid()}"
    query = {"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": role, "RoleSessionName": session}
    text = _ask(f"the role {role}", place, "/", {}, urlencode(query | {"WebIdentityToken": token}).encode())
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
    return _checked(f"the role {role}", *(told.text_of(text, name) for name in names))


def _container() -> Credentials:
    """https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html"""
    import json

    environ = os.environ
    url = environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
    url = url or f"http://169.254.170.2{environ['AWS_CONTAINER_CREDENTIALS_RELATIVE_URI']}"
    token = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
    if file := environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            raise StoreError(f"no credentials for S3: {file} cannot be read: {error.strerror}") from error
    parts = urlsplit(url)
    text = _ask("the container's role", f"{parts.scheme}://{parts.netloc}", f"{parts.path}?{parts.query}", {"authorization": token}, None)
    try:
        found = json.loads(text)
        return _checked("the container's role", *(str(found[name]) for name in ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")))
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"no credentials for S3: {url} did not answer with any.") from None


def _ask(what: str, place: str, path: str, headers: dict[str, str], body: bytes | None) -> bytes:
    """The text of one answer, asked for up to three times. Raises StoreError."""
    import http.client

    kind = http.client.HTTPSConnection if urlsplit(place).scheme == "https" else http.client.HTTPConnection
    if body is not None:
        headers = headers | {"content-type": "application/x-www-form-urlencoded"}
    for tries in (1, 2, 3):
        connection = kind(urlsplit(place).netloc, timeout=10)
        try:
            connection.request("GET" if body is None else "POST", path.rstrip("?"), body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            if tries == 3:
                raise StoreError(f"no credentials for S3: {what} could not be asked for at {place}: {error}") from error
        else:
            if answer.status == 200:
                return text
            if answer.status < 500 or tries == 3:
                why = told.text_of(text, "Message") or f"status {answer.status}"
                raise StoreError(f"no credentials for S3: {what} is refused by {place}: {why}")
        finally:
            connection.close()
        time.sleep(0.2 * tries)
    raise AssertionError("unreachable")


def _checked(what: str, key: str, secret: str, token: str, ends: str) -> Credentials:
    from datetime import datetime

    if not (key and secret):
        raise StoreError(f"no credentials for S3: the answer about {what} holds none.")
    try:
        ends_at = datetime.fromisoformat(ends).timestamp()
    except ValueError:
        ends_at = time.time() + 900.0
    return Credentials(key, secret, token, ends_at)
