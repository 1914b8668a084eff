"""Finds the route of a request."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from server.http.transport.request import Request
from server.terms.http_body.response_body import Answer


class Route(NamedTuple):
    """A path with the function that answers its requests."""

    path: str
    """May end with `{NAME:path}`, which stands for the rest of a path."""
    handle: Callable[[Request], Awaitable[Answer | None]]
    """Returns the answer. If it returns None, it has sent the response itself."""
    methods: tuple[str, ...] = ("GET", "HEAD")

    @property
    def prefix(self) -> str:
        return self.path.partition("{")[0]

    @property
    def argument(self) -> str:
        """The name of the path's rest. Empty if the path is complete."""
        return self.path.partition("{")[2].partition(":")[0]


class Routes:
    """The routes of a server. Each path has one."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.paths = {route.path: route for route in routes if not route.argument}
        self._open_ended = [route for route in routes if route.argument]

    def find(self, request: Request, path: str) -> Route | None:
        """The route of a path. Sets the request's `path_argument` to the path's rest."""
        if (route := self.paths.get(path)) is not None:
            return route
        for route in self._open_ended:
            if path.startswith(route.prefix):
                request.path_argument = path.removeprefix(route.prefix)
                return route
        return None
