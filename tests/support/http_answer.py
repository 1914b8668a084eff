"""One request to a server that may be starting, ready or gone."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple

_ANSWER_S = 60.0


class Answer(NamedTuple):
    """A response of any status; status 0 and an empty body if there was none."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body as JSON; None if it is empty."""
        return json.loads(self.body) if self.body else None


def ask(url: str, body: object = None, *, timeout_s: float = _ANSWER_S, key: str | None = None) -> Answer:
    """Sends POST with the body as JSON, or GET without a body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, data, headers)
    try:
        return _ask(request, timeout_s)
    except (OSError, http.client.HTTPException):  # also when the connection ends within the response
        return Answer(0, b"", {})


def _ask(request: urllib.request.Request, timeout_s: float) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return Answer(response.status, response.read(), dict(response.headers))
    except urllib.error.HTTPError as err:
        with err:
            return Answer(err.code, err.read(), dict(err.headers))
