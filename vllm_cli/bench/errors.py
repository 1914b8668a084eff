"""Errors of the benchmarks: click shows the message and exits with the error's exit code."""

import click

from server.exit_codes import START_FAILED, USAGE


class BenchError(click.ClickException):
    """Root of the benchmarks' errors; exit code 1: the run failed."""

    exit_code = 1


class BaselineError(BenchError):
    """The baseline file cannot be compared with this run."""

    exit_code = USAGE


class ModelUnknownError(BenchError):
    """The server lists no model, and `--model` does not name one."""

    exit_code = USAGE


class TargetStartError(BenchError):
    """The server did not start, does not answer, or rejects even the simplest completion."""

    exit_code = START_FAILED
