"""The helper's job if all files are on disk: finds out whether a branch has moved, and if so, downloads it.

Before a download, the helper imports only a part of the standard library, because the start's imports run at
the same time.
"""

import pickle
from typing import NamedTuple
from urllib.parse import urlsplit

from base.json_depth import read_json
from startup.files.download import MOST_LISTING_BYTES
from startup.processes.helper import Send


class Question(NamedTuple):
    """A branch whose commit is requested from the hub."""

    urls: tuple[str, ...]
    """The URLs that return the commit, at the hub and its mirrors."""
    token: str | None
    commit: str


class AskJob(NamedTuple):
    """The job that the launcher sends to the helper."""

    questions: tuple[Question, ...]
    timeout_s: float
    """The limit for each step of a request, in seconds."""
    download: bytes
    """The pickled `DownloadJob` that is run if a branch has moved."""


def run(job: AskJob, send: Send) -> None:
    """Sends whether a branch has moved, or why this is not known. If a branch has moved, runs the download.

    A branch counts as moved if only the hub's client can find out its commit.
    """
    try:
        has_moved = any(_find_commit(question, job.timeout_s) != question.commit for question in job.questions)
    except OSError as err:
        send(str(err))
        return
    send(has_moved)
    if has_moved:
        from startup.files.download.worker import run as download  # noqa: PLC0415 - rarely needed

        download(pickle.loads(job.download), send)


def _find_commit(question: Question, timeout_s: float) -> str | None:
    """Returns the commit from the first URL that responds. None if only the hub's client can request it.

    Raises:
        OSError: no URL responds. The message names the reason of the first URL.
    """
    failures: list[str] = []
    for url in question.urls:
        try:
            return _ask(url, question.token, timeout_s)
        except OSError as err:
            failures.append(f"the hub at {urlsplit(url).hostname} cannot be reached ({err})")
    raise OSError(failures[0])


def _ask(url: str, token: str | None, timeout_s: float) -> str | None:
    from http.client import HTTPException  # noqa: PLC0415 - the launcher imports this module, too
    from ssl import SSLError  # noqa: PLC0415
    from urllib.error import HTTPError, URLError  # noqa: PLC0415
    from urllib.request import Request, getproxies, urlopen  # noqa: PLC0415

    has_socks = any(name == "all" or proxy.startswith("socks") for name, proxy in getproxies().items())
    if has_socks or "@" in urlsplit(url).netloc:  # urllib supports neither
        return None
    request = Request(url)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # not sent to another host
    try:
        with urlopen(request, timeout=timeout_s) as answer:
            return str(read_json(answer.read(MOST_LISTING_BYTES))["sha"])
    except HTTPError as err:
        from startup.files.model.hub_settings import is_worth_a_retry  # noqa: PLC0415

        err.close()
        if is_worth_a_retry(err.code):  # a start asks once
            raise OSError(f"it answers {err.code}") from err
    except URLError as err:
        if not isinstance(err.reason, SSLError):  # the client has certificates of its own
            raise
    except (HTTPException, ValueError, KeyError, TypeError):
        pass
    return None
