"""Errors of the command line: words that are not valid get a line with `Error:` and no traceback."""

import click

from base.exit_codes import USAGE


class InputError(click.ClickException):
    """The user's input is not valid; exit code 2."""

    exit_code = USAGE
