"""Asks the hub for the commit of a branch, without the hub's client, whose import would delay that of the start."""

import json
from functools import partial
from http.client import HTTPException
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, getproxies, urlopen

from envs.redaction import without_login
from envs.registry import env
from startup.files.download.hub_client import error_line, is_worth_a_retry, listing_url, within_deadline
from startup.files.download.messages import DownloadError
from startup.files.model.file_plan import Download
from startup.files.model.hub_settings import hub_token
from startup.files.model.model_place import is_commit


def ask_commit(download: Download, endpoints: tuple[str, ...]) -> str | None:
    """The commit from the first address that answers; None if only the hub's client can tell, or tell why not.

    Raises:
        DownloadError: no address answers; the reason is the first address's.
    """
    failures: list[str] = []
    for endpoint in endpoints:
        url = listing_url(endpoint, download.repo_id, download.revision)
        try:
            return within_deadline(partial(_ask, url, hub_token(download.token)), env.HF_HUB_ETAG_TIMEOUT.get())
        except OSError as err:
            failures.append(f"the hub at {without_login(endpoint)} cannot be reached ({error_line(err)})")
    raise DownloadError("unreachable", failures[0])


def _ask(url: str, token: str | None) -> str | None:
    """Raises OSError without an answer."""
    has_socks = any(name == "all" or proxy.startswith("socks") for name, proxy in getproxies().items())
    if has_socks or without_login(url) != url:  # urllib takes neither
        return None
    request = Request(url)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not for another host
    try:
        with urlopen(request, timeout=env.HF_HUB_ETAG_TIMEOUT.get()) as answer:
            commit = json.load(answer)["sha"]
            return commit if is_commit(commit) else None
    except HTTPError as err:
        err.close()
        if is_worth_a_retry(err.code):  # the start asks once
            raise OSError(f"it answers {err.code}") from err
    except URLError as err:
        if not isinstance(err.reason, SSLError):  # the client has certificates of its own
            raise
    except (HTTPException, ValueError, KeyError, TypeError):
        pass
    return None
