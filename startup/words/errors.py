"""What the command line shows of words that are not valid: a line with `Error:`, without a traceback."""

import click

from base.exit_codes import USAGE


class InputError(click.ClickException):
    """The user's input is not valid; exit code 2."""

    exit_code = USAGE
