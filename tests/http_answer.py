"""What a server answers at this moment: while it starts, when it is well, and once nobody listens any more."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

_ANSWER_S = 60.0


class Answer(NamedTuple):
    """An answer of any status; 0 and nothing else where nobody answers."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body as JSON; None where there is none."""
        return json.loads(self.body) if self.body else None


def ask(url: str, body: object = None, *, timeout_s: float = _ANSWER_S) -> Answer:
    """Posts the body as JSON, or gets the page where there is no body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        return _ask(request, timeout_s)
    except (OSError, http.client.HTTPException):  # also in the middle of an answer
        return Answer(0, b"", {})


def _ask(request: urllib.request.Request, timeout_s: float) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return Answer(response.status, response.read(), dict(response.headers))
    except urllib.error.HTTPError as err:
        with err:
            return Answer(err.code, err.read(), dict(err.headers))
