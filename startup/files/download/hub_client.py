"""Requests the list of a repository's files, and the files, from the Hugging Face hub and its mirrors.

This module runs in the download helper. The hub's client library supplies session, headers and token, so
proxies and certificates are the same as for the library's own downloads.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from envs.redaction import without_login
from envs.registry import env
from startup.files.download.branch import is_worth_a_retry
from startup.files.download.messages import DownloadError, FailureKind
from startup.files.download.repository import HubFile, Listing, is_safe_name
from startup.files.model import hub_settings
from startup.files.model.hub_settings import listing_url
from startup.files.model.model_place import is_commit

logger = logging.getLogger(__name__)

_NUM_LISTINGS: Final = 8
"""The most attempts to get the list of files from one address. Only temporary errors cause a new attempt."""
_CONNECT_S: Final = 4.0

T = TypeVar("T")

_GIVE_TOKEN: Final = "give a token by --hf-token or HF_TOKEN"
_LONGEST_WAIT_S: Final = 120.0
"""The longest wait in seconds that a header Retry-After or RateLimit can cause."""
_LONGEST_BACKOFF_S: Final = 4.0


class ByteStream(NamedTuple):
    """A response with bytes of a file."""

    begin: int
    """The offset of the first byte in the file."""
    chunks: Iterator[bytes]


class FileAddress(NamedTuple):
    """The address of a repository's file at the hub or one of its mirrors."""

    endpoint: str
    repo_id: str
    commit: str
    name: str

    @property
    def url(self) -> str:
        return f"{self.endpoint}/{quote(self.repo_id)}/resolve/{self.commit}/{quote(self.name)}"

    def __str__(self) -> str:
        """Returns a text for messages, without a login in the address."""
        return f"{self.name} of {self.repo_id} at {without_login(self.endpoint)}"


class Wait(NamedTuple):
    """How many seconds to wait before a request is repeated, and why."""

    seconds: float = 0.0
    reason: str = ""


def wait_of(status: int, headers: Mapping[str, str], attempt: int) -> Wait:
    """Returns the wait that Retry-After or RateLimit demands, or else `backoff_s`."""
    asked_s = _asked_seconds(headers)
    seconds = backoff_s(attempt) if asked_s is None else min(asked_s, _LONGEST_WAIT_S)
    return Wait(seconds, f"the hub answers {status}, waiting {seconds:.0f} s")


def backoff_s(attempt: int) -> float:
    """Returns the wait in seconds: 0.5 after the first failure, doubled by each further one, at most 4."""
    return min(0.5 * 2.0 ** min(attempt - 1, 8), _LONGEST_BACKOFF_S)


def _asked_seconds(headers: Mapping[str, str]) -> float | None:
    retry_after = headers.get("Retry-After", "").strip()
    if retry_after.isdigit():
        return float(retry_after)
    if retry_after:  # a date is ignored, because clocks differ
        return None
    limit = headers.get("RateLimit", "").replace(" ", "")  # "api";r=0;t=55
    reset = limit.partition(";t=")[2].partition(";")[0]
    return float(reset) if ";r=0;" in f"{limit};" and reset.isdigit() else None


class Asked(NamedTuple):
    """Describes a request in messages."""

    repo_id: str
    revision: str | None
    endpoint: str
    """The hub's address without a login."""
    has_token: bool


def refusal(status: int, code: str, asked: Asked) -> str:
    """Explains an error response in one line. `code` is the hub's X-Error-Code."""
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
        return f"{page} does not exist: correct the name. If it is private, {private}"
    return f"the hub at {asked.endpoint} answers {status} for {name}: try again later, or give a local folder"


class RetryableError(Exception):
    """The request has failed, but may succeed if it is repeated."""

    def __init__(self, reason: str, wait: Wait | None = None) -> None:
        super().__init__(reason)
        self.wait = wait or Wait()


class HubClient:
    """Sends requests to the hub, on any thread."""

    def __init__(self, *, token: str | None, stall_s: float) -> None:
        import huggingface_hub.utils
        from huggingface_hub import constants

        library: Any = huggingface_hub.utils  # its function for headers sends requests of its own
        try:
            self._session = library.get_session()
        except Exception as err:
            names = dict(hub_settings.unusable_certificates()) if isinstance(err, OSError) else hub_settings.PROXIES
            raise _impossible(err, (*names, env.HF_ENDPOINT.name)) from err
        try:
            token = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else library.get_token())
        except (OSError, ValueError) as err:
            raise _impossible(err, (env.HF_TOKEN_PATH.name,)) from err
        self._headers = {"User-Agent": "vllm-cli", "Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        httpx: Any = sys.modules[type(self._session).__module__.partition(".")[0]]  # or httpx2, by the version
        connect_s = min(_CONNECT_S, stall_s) if env.HF_HUB_DOWNLOAD_TIMEOUT.source == "default" else stall_s
        self._timeout = httpx.Timeout(stall_s, connect=connect_s)
        self._network_errors: tuple[type[Exception], ...] = (
            httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL, TimeoutError
        )  # fmt: skip

    @property
    def has_token(self) -> bool:
        return "Authorization" in self._headers

    def list_files(
        self, repo_id: str, revision: str | None, endpoints: tuple[str, ...], pause: Callable[[float, str], None]
    ) -> Listing:
        """Returns the files of a revision, from the first address that responds.

        Args:
            repo_id: the repository.
            revision: a branch, tag or commit. None stands for the main branch.
            endpoints: the addresses to try.
            pause: called with the seconds to wait, and with the reason for the wait.

        Raises:
            DownloadError: no address has listed the files. It is the first refusal, or else the first error.
        """
        failures: list[DownloadError] = []
        for number, endpoint in enumerate(endpoints):
            try:
                listing = self._list_from(endpoint, repo_id, revision, pause)
                return listing._replace(endpoints=(*endpoints[number:], *endpoints[:number]))
            except DownloadError as err:
                failures.append(err)
                if len(endpoints) > 1:
                    logger.warning("%s", err)
        raise next((err for err in failures if err.kind == "refused"), failures[0])

    def _list_from(
        self, endpoint: str, repo_id: str, revision: str | None, pause: Callable[[float, str], None]
    ) -> Listing:
        url = f"{listing_url(endpoint, repo_id, revision)}?blobs=true"
        host = without_login(endpoint)
        for attempt in range(1, _NUM_LISTINGS + 1):
            try:
                answer = _within_deadline(lambda: self._get(url), env.HF_HUB_ETAG_TIMEOUT.get())
            except self._network_errors as err:
                reason = f"{_line(err)}{_with_variables(endpoint, err)}"
                unreachable = f"{repo_id} is not cached, and the hub at {host} cannot be reached ({reason})"
                raise DownloadError("unreachable", unreachable) from err
            if answer.status_code == 200:
                return self._read_listing(answer, endpoint, repo_id)
            if not is_worth_a_retry(answer.status_code) or attempt == _NUM_LISTINGS:
                break
            wait = wait_of(answer.status_code, answer.headers, attempt)
            pause(wait.seconds, wait.reason)
        kind: FailureKind = "unreachable" if is_worth_a_retry(answer.status_code) else "refused"
        reason = refusal(
            answer.status_code,
            answer.headers.get("X-Error-Code", ""),
            Asked(repo_id, revision, host, self.has_token),
        )
        raise DownloadError(kind, reason)

    def _get(self, url: str) -> Any:
        return self._session.get(url, headers=self._headers, timeout=self._timeout, follow_redirects=True)

    def _read_listing(self, answer: Any, endpoint: str, repo_id: str) -> Listing:
        try:
            content = answer.json()
            commit = content["sha"]
            files = tuple(HubFile.from_sibling(sibling) for sibling in content.get("siblings") or ())
            if not is_commit(commit):
                raise ValueError(f"{commit!r} is not a commit")
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            host = without_login(endpoint)
            reason = f"{host} answers with a list of the files of {repo_id} that cannot be read ({_line(err)})"
            raise DownloadError("wrong", reason) from err
        current_id = str(content.get("id") or repo_id)
        if current_id.lower() != repo_id.lower():
            logger.warning("%s is named %s now: use the new name, the old one may stop working", repo_id, current_id)
        if unsafe := [file.name for file in files if not is_safe_name(file.name)]:
            logger.warning("%s has file names that are not used: %r", repo_id, unsafe[:3])
        return Listing(commit, {file.name: file for file in files if is_safe_name(file.name)}, (endpoint,))

    def describe(self, address: FileAddress, file: HubFile) -> HubFile:
        """Returns the file with its size and hash from response headers. Some mirrors do not list them.

        Raises:
            RetryableError: the address cannot be reached, or responds with a temporary error.
            DownloadError: the address refuses the request, or does not report the hash.
        """
        try:
            answer = self._session.request(
                "HEAD", address.url, headers=self._headers, timeout=self._timeout, follow_redirects=True
            )
        except self._network_errors as err:
            reason = f"{_line(err)}{_with_variables(address.endpoint, err)}"
            raise RetryableError(f"{address} cannot be reached ({reason})") from err
        self._check(answer, address)
        first = (answer.history or [answer])[0].headers
        etag = first.get("X-Linked-Etag") or first.get("ETag") or ""
        size = first.get("X-Linked-Size") or answer.headers.get("Content-Length") or ""
        described = file.described(etag.removeprefix("W/").strip('"'), int(size) if size.isdigit() else None)
        if not described.oid:
            raise DownloadError("wrong", f"{address} has no hash, so it cannot be verified")
        return described

    @contextmanager
    def stream(self, address: FileAddress, begin: int) -> Iterator[ByteStream]:
        """Yields a file's bytes from this offset, or all its bytes if the server ignores offsets.

        A redirect to another host gets no token. A connection without a byte for `stall_s` is an error.

        Raises:
            RetryableError: the request failed, or its response broke off.
            DownloadError: the server refuses the request.
        """
        headers = {**self._headers, **({"Range": f"bytes={begin}-"} if begin else {})}
        try:
            with self._session.stream(
                "GET", address.url, headers=headers, timeout=self._timeout, follow_redirects=True
            ) as answer:
                self._check(answer, address)
                yield ByteStream(begin=_first_byte(answer, begin), chunks=answer.iter_bytes())
        except self._network_errors as err:
            reason = f"{_line(err)}{_with_variables(address.endpoint, err)}"
            raise RetryableError(f"the connection failed ({reason})") from err

    def _check(self, answer: Any, address: FileAddress) -> None:
        status = answer.status_code
        if status in (200, 206):
            return
        if is_worth_a_retry(status) or status == 416:
            raise RetryableError(f"the hub answers {status}", wait_of(status, answer.headers, 1))
        reason = refusal(
            status,
            answer.headers.get("X-Error-Code", ""),
            Asked(address.repo_id, address.commit, without_login(address.endpoint), self.has_token),
        )
        raise DownloadError("refused", f"{reason} ({address.name})")


def _first_byte(answer: Any, begin: int) -> int:
    """Returns the response's offset in the file: 0 if the server has ignored the requested range."""
    if answer.status_code == 200:
        return 0
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not first.isdigit() or int(first) != begin:
        raise RetryableError(f"the server sent the range {first!r} instead of {begin}")
    return begin


def _within_deadline(request: Callable[[], T], seconds: float) -> T:
    """Runs a request on a thread, and abandons it after this time. The library's own limits exclude DNS."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(request())
        except Exception as err:  # noqa: BLE001 - raised again by `outcome.result`
            outcome.set_exception(err)

    threading.Thread(target=run, name="hub-request", daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError as err:
        raise TimeoutError(f"no answer within {seconds:g} s") from err


def _impossible(err: Exception, names: Iterable[str]) -> DownloadError:
    """The error for variables with which the hub's client cannot be created."""
    given = hub_settings.describe_variables(names)
    remedy = f": correct or unset {given}" if given else ""
    return DownloadError("settings", f"no request to the hub is possible ({_line(err)}){remedy}")


def _with_variables(endpoint: str, err: BaseException) -> str:
    """The variables to which a failed request may be due, with their values but without logins."""
    is_certificate = "CERTIFICATE" in str(err)
    names = hub_settings.CERTIFICATES if is_certificate else hub_settings.proxies_of(endpoint)
    given = hub_settings.describe_variables((*names, env.HF_ENDPOINT.name))
    return f"; {given}" if given else ""


def _line(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
