"""Whether a failed attempt is tried again, and after how long: the meaning of `Retry`, as two functions.

Pure: no clock, no chance. The engine decides by them, and a worker asks the same before it keeps an error as `--catch` does,
so that both always agree.
"""

from __future__ import annotations

import hashlib

from flowbook.spec.flow import Json, Retry

# What ends an attempt without an exception of Python: "reason" of ERROR in docs/internals.md. `only` and `unless` take these words, too.
WORDS = frozenset({"oom", "timeout", "killed", "lost", "exit"})
LONGEST_WAIT_S = 365 * 86400.0  # what grows by a factor is stopped here


def qualifies(retry: Retry, error: Json) -> bool:
    """Whether this failure is of a kind that is tried again; how often is another question.

    `error` is ERROR of docs/internals.md; its "bases" are the names of the exception's class and of all its base classes, bare and
    with their module. What is no exception goes by its reason. Without `only` and `unless` everything qualifies.

    >>> qualifies(Retry(3, only=("OSError",)), {"reason": "error", "type": "KeyError", "bases": ["KeyError", "LookupError"]})
    False
    """
    reason = error.get("reason", "error")
    names = {reason} if reason != "error" else {str(error.get("type", "")), *map(str, error.get("bases") or ())}
    return (not retry.only or not names.isdisjoint(retry.only)) and names.isdisjoint(retry.unless)


def wait_s(retry: Retry, n: int, task: str) -> float:
    """Seconds before the next attempt, after the failure number `n` of a task (from 0).

    The jitter is drawn from the words of `task`, which should name run, step and index: the same task waits as long whenever
    its log is read, and the tasks of a fan-out that failed together do not start together.

    >>> wait_s(Retry(5, 1, backoff=2, max_minutes=3), 0, ""), wait_s(Retry(5, 1, backoff=2, max_minutes=3), 2, "")
    (60.0, 180.0)
    """
    try:
        seconds = 60 * retry.minutes_between_retries * retry.backoff**n
    except OverflowError:
        seconds = LONGEST_WAIT_S
    seconds = min(seconds, LONGEST_WAIT_S if retry.max_minutes is None else 60 * retry.max_minutes)
    if retry.jitter:
        drawn = int.from_bytes(hashlib.sha256(f"{task} {n}".encode()).digest()[:8], "big") / 2**64
        seconds *= 1 + retry.jitter * (2 * drawn - 1)
    return seconds
