"""Errors that the command line shows as lines that begin with `Error:`, without a traceback."""

import click


class InputError(click.ClickException):
    """What the user wrote cannot be done; exit code 2."""

    exit_code = 2


class ConnectionFailedError(click.ClickException):
    """The server that `chat` and `complete` talk to does not answer, or answers with an error; exit code 1."""

    exit_code = 1
