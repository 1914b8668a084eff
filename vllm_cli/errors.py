"""Errors that the command line shows as a line with `Error:`, without a traceback."""

import click

from server.exit_codes import USAGE


class InputError(click.ClickException):
    """The user's input is not valid; exit code 2."""

    exit_code = USAGE


class ConnectionFailedError(click.ClickException):
    """The server of `chat` or `complete` does not respond, or responds with an error; exit code 1."""

    exit_code = 1
