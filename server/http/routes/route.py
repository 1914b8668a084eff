"""A path of the server, and what answers its requests."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from server.http.transport.request import Request
from server.terms.http_body.response_body import Answer


class Route(NamedTuple):
    """One path."""

    path: str
    """May end with `{NAME:path}`, which stands for the rest of a path."""
    handle: Callable[[Request], Awaitable[Answer | None]]
    """Returns the answer. If it returns None, it has sent the response itself."""
    methods: tuple[str, ...] = ("GET", "HEAD")
