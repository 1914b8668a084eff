"""Lists the files of a repository and downloads them with the Hugging Face hub's own client.

This module runs in the download helper. A preflight that asks the hub uses it, too.
"""

import logging
import socket
import ssl
import string
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from base.errors import with_causes
from base.wording import foreign_line
from envs.registry import env
from startup.files.download.hub_answers import guarded, own_reason, use_checked_client
from startup.files.download.messages import DownloadError
from startup.files.download.repository import CachedRepository, HubFile, Listing, keep_safe
from startup.files.model import hub_settings
from startup.files.model.hub_settings import is_worth_a_retry
from startup.files.model.model_place import is_commit

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NUM_ROUNDS: Final = 5
"""How often all addresses are tried. Only a temporary failure causes a further round."""
_LONGEST_WAIT_S: Final = 120.0
"""The longest wait in seconds that a header Retry-After or RateLimit can cause."""
_REACHED_S: Final = 2.0
"""How long a connection to the hub may take before the hub's client tries it instead."""
_NUM_THREADS: Final = 8
_CHUNK_BYTES: Final = 1 << 20
"""How many bytes the client writes to disk at once. Its default, 10 MB, is too coarse to show progress."""
_HASH_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits)
_LONGEST_HASH: Final = 64
_GIVE_TOKEN: Final = "give a token by --hf-token or HF_TOKEN"


def try_each(
    endpoints: Sequence[str], request: Callable[[str], T], pause: Callable[[float, DownloadError], None] | None = None
) -> T:
    """Calls `request` with one address after the other until a call succeeds.

    `pause` is called before each further round, with the seconds to wait and the failure. Without `pause`,
    there is one round.

    Raises:
        DownloadError: no call has succeeded. It is the first refusal, or else the first failure.
    """
    for number in range(_NUM_ROUNDS):
        failures: list[DownloadError] = []
        for endpoint in endpoints:
            try:
                return request(endpoint)
            except DownloadError as err:
                if err.kind in ("disk", "cache"):
                    raise
                failures.append(err)
                if len(endpoints) > 1:
                    logger.warning("%s", err)
        temporary = [err for err in failures if err.retry_s is not None]
        if pause is None or not temporary or number + 1 == _NUM_ROUNDS:
            break
        pause(temporary[0].retry_s or 0.5 * 2.0**number, temporary[0])
    raise next((err for err in failures if err.kind == "refused"), failures[0])


def check_reachable(repo_id: str, endpoints: Sequence[str]) -> None:
    """Raises DownloadError if the names of all hosts are unknown, or their ports closed.

    This takes milliseconds, and the import of the hub's client a second. The client asks hosts that are slow,
    and decides if a proxy, unusable certificates or the token's place may be the fault.
    """
    if hub_settings.describe_variables((*hub_settings.PROXIES, env.HF_TOKEN_PATH.name)):
        return
    failures = []
    for endpoint in endpoints:
        address = urlsplit(endpoint)
        if address.hostname is None:
            return
        try:
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((address.hostname, port), _REACHED_S).close()
            return
        except (TimeoutError, ValueError):  # ValueError: the port is no number
            return
        except OSError as err:
            failures.append(_unreachable(repo_id, endpoint, err))
    if failures and not any(hub_settings.unusable_certificates()):
        raise failures[0]


class HubClient:
    """Sends requests to the hub or a mirror, on any thread."""

    def __init__(self, *, token: str | None) -> None:
        import huggingface_hub.utils

        library: Any = huggingface_hub.utils
        library.disable_progress_bars()
        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
        try:
            use_checked_client()
            library.get_session()
            is_anonymous = env.HF_HUB_DISABLE_IMPLICIT_TOKEN.get()
            self._token = token or (None if is_anonymous else library.get_token())
        except Exception as err:
            raise _impossible(err) from err

    def list_files(self, repo_id: str, revision: str | None, endpoint: str) -> Listing:
        """Returns the files of a branch, tag or commit. None stands for the main branch."""
        from huggingface_hub import HfApi

        with self._explained(repo_id, revision, endpoint):
            info = HfApi(endpoint=endpoint, token=self._token or False).model_info(
                repo_id, revision=revision or "main", files_metadata=True, timeout=env.HF_HUB_ETAG_TIMEOUT.get()
            )
            if not is_commit(str(info.sha)):
                raise ValueError(f"{info.sha!r} is not a commit")
            new_name = foreign_line(str(info.id))
            files = {file.name: file for file in map(_describe, info.siblings or ())}
        if new_name.lower() != repo_id.lower():
            logger.warning("%s is named %s now: use the new name, the old one may stop working", repo_id, new_name)
        return Listing(str(info.sha), keep_safe(repo_id, files), endpoint)

    def fetch(self, repository: CachedRepository, listing: Listing, names: Sequence[str], endpoint: str) -> None:
        """Downloads the files into the snapshot of the listing's commit. Skips files that are there.

        The client's `snapshot_download` would list the files a second time, and keep that list in the cache.
        """
        from huggingface_hub import hf_hub_download

        fetch_one = partial(
            hf_hub_download,
            repository.repo_id,
            revision=listing.commit,
            cache_dir=repository.cache_dir,
            endpoint=endpoint,
            token=self._token or False,
            library_name="vllm-cli",
        )
        repository.remove_leftovers()
        pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="download")
        with self._explained(repository.repo_id, listing.commit, endpoint), guarded(listing), pool:
            deque(pool.map(fetch_one, names), maxlen=0)

    def check_access(self, repo_id: str, listing: Listing, name: str) -> None:
        """Raises DownloadError if the hub refuses a file, as it does for a gated model."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(repo_id, name, revision=listing.commit, endpoint=listing.endpoint)
        with self._explained(repo_id, listing.commit, listing.endpoint):
            get_hf_file_metadata(url, token=self._token or False, endpoint=listing.endpoint)

    @contextmanager
    def _explained(self, repo_id: str, revision: str | None, endpoint: str) -> Iterator[None]:
        """Turns errors of the hub's client, inside the block, into errors of a download."""
        try:
            yield
        except Exception as err:
            raise self._explain(err, repo_id, revision, endpoint) from err

    def _explain(self, err: Exception, repo_id: str, revision: str | None, endpoint: str) -> DownloadError:
        causes = list(with_causes(err))
        for cause in causes:
            if (response := getattr(cause, "response", None)) is not None:
                reason = self._refusal(response, repo_id, revision, endpoint)
                if is_worth_a_retry(response.status_code):
                    return DownloadError("unreachable", reason, _asked_seconds(response.headers))
                return DownloadError("refused", reason)
        for cause in causes:
            if type(cause).__module__.startswith("httpx"):
                return _unreachable(repo_id, endpoint, cause)
        if isinstance(err, OSError) and err.errno is not None:
            raise err
        return DownloadError("wrong", f"{repo_id} cannot be downloaded from {endpoint} ({foreign_line(err)})", 0.0)

    def _refusal(self, response: Any, name: str, revision: str | None, endpoint: str) -> str:
        """Explains an error response in one line."""
        status, code, page = response.status_code, response.headers.get("X-Error-Code", ""), f"{endpoint}/{name}"
        reason = own_reason(response)
        if code == "GatedRepo":
            return f"{name} is gated: ask for access at {page}" + ("" if self._token else f", then {_GIVE_TOKEN}")
        if status == 403:
            return self._forbidden(name, endpoint, reason)
        if code == "RevisionNotFound":
            return f"{name} has no revision {revision or 'main'!r}: correct --revision"
        if status == 401 and self._token and code != "RepoNotFound":
            advice = "correct --hf-token or HF_TOKEN, or run `hf auth login`"
            return f"the hub does not accept the token: {advice} ({name})"
        if code == "EntryNotFound":
            return f"{page} lacks a file that it lists: try again later, or give another --revision"
        if status in (401, 404):
            private = "the token may not see it" if self._token else _GIVE_TOKEN
            return f"{page} does not exist: correct the name. If it is private, {private}"
        said = f" ({reason})" if reason else ""
        return f"the hub at {endpoint} answers {status} for {name}{said}: try again later, or give a local folder"

    def _forbidden(self, name: str, endpoint: str, reason: str) -> str:
        """Explains a 403 that does not come from a gate: a token without the right, a disabled repository."""
        said = reason or "403, without a reason"
        advice = "give a token with the right to read it" if self._token else _GIVE_TOKEN
        if "disabled" in reason.lower():
            advice = "nobody can download it"
        return f"the hub at {endpoint} refuses {name} ({said}): {advice}, or give another repository or mirror"


def _describe(sibling: Any) -> HubFile:
    oid = str(sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id)
    is_hash = len(oid) <= _LONGEST_HASH and _HASH_CHARACTERS.issuperset(oid)  # it becomes a file's name
    size = sibling.size if type(sibling.size) is int and sibling.size >= 0 else None
    return HubFile(str(sibling.rfilename), size, oid if is_hash else "")


def _asked_seconds(headers: Mapping[str, str]) -> float:
    """The wait that Retry-After or RateLimit (`"api";r=0;t=55`) demands. 0 if they demand none."""
    limit = headers.get("RateLimit", "").replace(" ", "")
    limit_s = limit.partition(";t=")[2].partition(";")[0]
    asked = headers.get("Retry-After", "").strip() or limit_s
    is_number = asked.isdecimal() and asked.isascii()  # a date is ignored, because clocks differ
    return min(float(asked), _LONGEST_WAIT_S) if is_number else 0.0


def _impossible(err: Exception) -> DownloadError:
    """The error for variables with which the hub's client cannot be created."""
    names = [*hub_settings.PROXIES, env.HF_ENDPOINT.name]
    if isinstance(err, OSError):
        names = [name for name, _ in hub_settings.unusable_certificates()] or [env.HF_TOKEN_PATH.name]
    given = hub_settings.describe_variables(names)
    remedy = f": correct or unset {given}" if given else ""
    return DownloadError("settings", f"no request to the hub is possible ({foreign_line(err)}){remedy}")


def _unreachable(repo_id: str, endpoint: str, err: BaseException) -> DownloadError:
    reason = f"{foreign_line(err)}{_with_variables(endpoint, err)}"
    return DownloadError(
        "unreachable", f"{repo_id} is not cached, and the hub at {endpoint} cannot be reached ({reason})"
    )


def _with_variables(endpoint: str, err: BaseException) -> str:
    """The variables to which a failed request may be due, with their values but without logins."""
    is_certificate = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in with_causes(err))
    names = hub_settings.CERTIFICATES if is_certificate else hub_settings.proxies_of(endpoint)
    given = hub_settings.describe_variables((*names, env.HF_ENDPOINT.name))
    return f"; {given}" if given else ""
