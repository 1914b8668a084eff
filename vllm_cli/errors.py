"""Errors that the command line shows as a line with `Error:`, without a traceback."""

import click

from base.exit_codes import USAGE


class InputError(click.ClickException):
    """The user's input is not valid; exit code 2."""

    exit_code = USAGE


class ConnectionFailedError(click.ClickException):
    """A server does not respond, or responds with an error; exit code 1.

    `status` is the HTTP status of its answer, None without an answer.
    """

    exit_code = 1

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
