"""Errors of the command line: invalid arguments cause one line, which begins with `Error:`."""

import click

from base.exit_codes import USAGE


class InputError(click.ClickException):
    """The user's input is not valid. The command exits with code 2."""

    exit_code = USAGE
