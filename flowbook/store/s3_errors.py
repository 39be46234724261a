"""What is wrong when an S3 server refuses or cannot be reached, in words that say what to do. Pure, but for reading the answer's XML."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Protocol

from flowbook.errors import StoreError, StoreFull, StoreMissing, StoreReadOnly

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

WRONG_KEYS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "XAdminUserNotFound",
}  # the last: versitygw
ENDED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"}
FULL = {"QuotaExceeded", "XMinioStorageFull", "XAmzStorageFull", "InsufficientStorage", "AccountProblem"}
ABSENT = {"", "NoSuchKey", "NotFound"}  # what a 404 says where it is the object that is not there
NO_CONDITION = {"NotImplemented", "NotSupported", "InvalidArgument", "MethodNotAllowed", "UnsupportedParameter"}


class Refusal(Protocol):
    """What is needed of an answer."""

    @property
    def status(self) -> int: ...
    @property
    def code(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...


def text_of(body: bytes, tag: str) -> str:
    """The text of the first element of that name in an XML answer; "" if there is none, or no XML."""
    found = re.search(rf"<{tag}>([^<]*)</{tag}>".encode(), body)
    if not found:
        return ""
    from xml.sax.saxutils import unescape

    return unescape(found[1].decode("utf-8", "replace"), {"&quot;": '"', "&#34;": '"', "&apos;": "'"})


def is_final(error: BaseException) -> bool:
    """Whether trying again cannot help."""
    return isinstance(error, ssl.SSLCertVerificationError) or "WRONG_VERSION_NUMBER" in str(error)


def unreachable(bucket: str, endpoint: str, error: BaseException, after_s: float) -> StoreError:
    """No answer came."""
    place = f"s3://{bucket} at {endpoint}"
    look = "Look at s3_endpoint in the settings (AWS_ENDPOINT_URL)"
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"its certificate is not trusted: {error.verify_message}. Name your authority's file in AWS_CA_BUNDLE"
    elif isinstance(error, ssl.SSLError):
        why = f"it does not speak TLS: {error.reason or error}. {look}: is it http:// rather than https://?"
    elif isinstance(error, socket.gaierror):
        why = f"there is no such host. {look} and at s3_region"
    elif isinstance(error, ConnectionRefusedError):
        why = f"nothing listens there. {look}; is the server up?"
    elif isinstance(error, TimeoutError):
        why = f"it does not answer. {look}, at proxies and at firewalls"
    else:
        why = f"{type(error).__name__}: {error or 'the connection was closed'}. {look}, and whether that is an S3 server"
    return StoreError(f"the store {place} cannot be reached (tried for {after_s:.0f} s): {why}.")


def refused(
    bucket: str, endpoint: str, region: str, method: str, key: str, answer: Refusal, asked: Mapping[str, Any], credentials: Any
) -> StoreError:
    """An answer that is none of those a caller knows what to do with. `asked`: headers and query."""
    code, place = answer.code, f"s3://{bucket}"
    message = text_of(answer.body, "Message")
    said = f"{code}: {message}" if code and message else code or message or f"status {answer.status}"
    kind = getattr(credentials, "kind", "") or "the environment"
    if code == "NoSuchBucket" or (answer.status == 404 and not key and code in ABSENT):
        return StoreError(f"there is no bucket {bucket!r} at {endpoint}. Make it, or correct `store` in the settings.")
    if code == "InvalidBucketName":
        return StoreError(f"{bucket!r} is no name of a bucket: 3 to 63 of a-z, 0-9, '-' and '.'. Correct `store` in the settings.")
    if code in ENDED:
        return StoreError(
            f"{place}: the credentials of {kind} have ended ({said}). Get new ones (aws sso login, or new AWS_… variables) "
            "and restart the kernel: processes keep the variables they were started with."
        )
    if code in WRONG_KEYS:
        return StoreError(f"{place} does not know the credentials of {kind} ({said}). Are they of {endpoint}? Correct them.")
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{place}: the clock of this machine is wrong ({said}). Set it by a time server (NTP).")
    other = answer.headers.get("x-amz-bucket-region") or text_of(answer.body, "Region")
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException") or (
        answer.status in (301, 307) and other
    ):
        right = f"Set s3_region = {other!r}" if other and other != region else "Look at s3_region and s3_endpoint"
        return StoreError(f"{place} is not in the region {region!r} ({said}). {right} in the settings.")
    if code.startswith("KMS.") or "kms" in message.lower():
        return StoreError(f"{place}: the key for encryption cannot be used ({said}). Look at s3_encryption, and at the rights of that key.")
    if answer.status in (401, 403):
        return _denied(place, method, key, said, asked, kind)
    if code in FULL or answer.status == 507:
        return StoreFull(f"{place} takes no more: {said}. Free some space there (`%flow gc`), or use another bucket.")
    if "if-none-match" in asked and (code in NO_CONDITION or answer.status in (400, 405, 501)):
        return no_conditions(bucket, endpoint, f"it answers {said}")
    if answer.status == 404 and code in ABSENT:
        return StoreMissing(f"no object {key} in {place}")
    if answer.status in (429, 500, 502, 503, 504):
        return StoreError(f"{place} is too busy or broken: it kept answering {said}. Try again later, or ask who runs {endpoint}.")
    return StoreError(f"{place}: {method} of {key or 'the bucket'} was refused: {said}.")


def no_conditions(bucket: str, endpoint: str, why: str) -> StoreError:
    """Without create-if-absent two engines, or an attempt thought lost, could overwrite a result."""
    return StoreError(
        f"the bucket {bucket!r} at {endpoint} does not keep `If-None-Match: *` ({why}), so results could be overwritten. "
        "Use a bucket whose server has conditional writes, or a newer version of it; `%flow doctor` tries it."
    )


def _denied(place: str, method: str, key: str, said: str, asked: Mapping[str, Any], kind: str) -> StoreError:
    action = {"PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}.get(method, "s3:GetObject")
    if "list-type" in asked or (method == "HEAD" and not key):
        action = "s3:ListBucket"
    elif "delete" in asked:
        action = "s3:DeleteObject"
    elif "uploads" in asked and method == "GET":
        action = "s3:ListBucketMultipartUploads"
    on = f"arn:aws:s3:::{place.removeprefix('s3://')}" + ("" if action.startswith("s3:ListBucket") else f"/{key}")
    hint = " (or s3:ListBucket on the bucket: without it what is not there is refused, too)" if action == "s3:GetObject" else ""
    text = f"{place}: the credentials of {kind} have no right to {action} on {on}{hint} ({said}). Ask for it, or use other credentials."
    return StoreReadOnly(text) if action in ("s3:PutObject", "s3:DeleteObject") else StoreError(text)
