"""Errors that the command line shows as one line after `Error:`, without a traceback."""

import click

from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from startup.settings.serve_arguments import repeated_arguments


class ConnectionFailedError(click.ClickException):
    """A server does not respond, or responds with an error. The exit code is 1.

    `status` is the HTTP status of the server's answer, or None if there was no answer.
    """

    exit_code = 1

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class NotUtf8Error(click.UsageError):
    """A text for a server has bytes that are not UTF-8, for example of a file in Latin-1. Exit code 2."""

    def __init__(self, before: str, wrong: bytes) -> None:
        """`before` is the end of the text before the bytes `wrong`."""
        shown = "".join(f"\\x{byte:02x}" for byte in wrong)
        place = f"follow {before!r}" if before else "begin it"
        super().__init__(f"The text is not UTF-8: the bytes {shown} {place}. Convert it, for example with `iconv`.")


class CommandGroup(click.Group):
    """A group that answers an unknown command with a usage error and a suggestion."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises the error before click raises its own."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            if repeated := repeated_arguments([each for each in args if each != "serve"]):
                ctx.fail(f"The arguments `{' '.join(repeated)}` stand twice: leave them out.")
            whole = f"{self.name} {args[0]}"
            guess = did_you_mean(whole if whole in REPLACEMENTS else args[0], known)
            ctx.fail(f"No such command {args[0]!r}{guess}.")
        return super().resolve_command(ctx, args)
