"""The meaning of the hub's error answers: whether to repeat the request and when, or what to tell the user.

Standard library only.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

_GIVE_TOKEN: Final = "give a token by --hf-token or HF_TOKEN"
_LONGEST_WAIT_S: Final = 120.0
"""The most that a Retry-After header is obeyed."""
_LONGEST_BACKOFF_S: Final = 4.0


class Wait(NamedTuple):
    """How long to wait before a request is repeated, and why."""

    seconds: float = 0.0
    reason: str = ""


def is_worth_a_retry(status: int) -> bool:
    """Whether the same request may be answered later."""
    return status in (408, 425, 429) or status >= 500


def wait_of(status: int, headers: Mapping[str, str], attempt: int) -> Wait:
    """What the answer asks for by Retry-After or the hub's own header, else longer with each attempt."""
    asked_s = _asked_seconds(headers)
    seconds = backoff_s(attempt) if asked_s is None else min(asked_s, _LONGEST_WAIT_S)
    return Wait(seconds, f"the hub answers {status}, waiting {seconds:.0f} s")


def backoff_s(attempt: int) -> float:
    """0.5 s after the first failure, twice as long after each further one, at most four seconds."""
    return min(0.5 * 2.0 ** min(attempt - 1, 8), _LONGEST_BACKOFF_S)


def _asked_seconds(headers: Mapping[str, str]) -> float | None:
    retry_after = headers.get("Retry-After", "").strip()
    if retry_after.isdigit():
        return float(retry_after)
    if retry_after:  # a date is obeyed by the usual waits: clocks differ
        return None
    limit = headers.get("RateLimit", "").replace(" ", "")  # "api";r=0;t=55
    reset = limit.partition(";t=")[2].partition(";")[0]
    return float(reset) if ";r=0;" in f"{limit};" and reset.isdigit() else None


class Asked(NamedTuple):
    """What a request was for."""

    repo_id: str
    revision: str | None
    endpoint: str
    """The hub's address, without a login."""
    has_token: bool


def refusal(status: int, code: str, asked: Asked) -> str:
    """One line for the user about an answer that is an error; `code` is the hub's X-Error-Code."""
    name, page = asked.repo_id, f"{asked.endpoint}/{asked.repo_id}"
    if code == "GatedRepo" or (status == 403 and not code):
        how = f"ask for access at {page}"
        return f"{name} is gated: {how}" + ("" if asked.has_token else f", then {_GIVE_TOKEN}")
    if code == "RevisionNotFound":
        return f"{name} has no revision {asked.revision or 'main'!r}: correct --revision"
    if status == 401 and asked.has_token and code != "RepoNotFound":
        return f"the hub does not accept the token: correct --hf-token or HF_TOKEN, or run `hf auth login` ({name})"
    if code == "EntryNotFound":
        return f"{page} has no such file"
    if status in (401, 404):
        private = "the token may not see it" if asked.has_token else _GIVE_TOKEN
        return f"{page} does not exist: correct the name; if it is private, {private}"
    return f"the hub at {asked.endpoint} answers {status} for {name}: try again later, or give a local folder"
