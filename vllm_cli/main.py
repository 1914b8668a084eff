"""Runs a command line and returns the exit code. Imports only the standard library and click.

Exit codes: 0 done, 1 a server did not respond, 2 invalid input, 3 the start failed, 130 Ctrl-C.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from base.errors import ConfigError, with_causes
from base.exit_codes import INTERRUPTED, START_FAILED, USAGE
from envs.redaction import hide_quoted
from envs.registry import env
from envs.replacements import REPLACEMENTS
from envs.suggestion import did_you_mean
from envs.variable import EnvError
from startup.embedded.installed import INSTALL_COMMAND, MODULES
from startup.errors import (
    OWN_FAULT_CAUSE,
    USAGE_CAUSE,
    CommandLineError,
    CrashError,
    StartupError,
    code_line,
    code_of,
    with_code,
)
from startup.settings.serve_arguments import LauncherLine, vllm_file
from vllm_cli.errors import CommandGroup
from vllm_cli.version import VERSION

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CommandEntry(NamedTuple):
    """One line of the table of commands."""

    name: str
    target: str
    """`package.module:attribute` of the click command."""
    help: str


FIRST_COMMANDS: Final = (
    CommandEntry("serve", "vllm_cli.commands.serve:serve", "Serve a model with the OpenAI API."),
    CommandEntry("wait", "vllm_cli.commands.wait:wait", "Wait until a server is ready, and show its phase."),
    CommandEntry("run", "vllm_cli.commands.run:run", "Chat with a model, and serve it meanwhile if needed."),
    CommandEntry("chat", "vllm_cli.commands.chat:chat", "Chat with a model on a running server."),
    CommandEntry("ps", "vllm_cli.commands.ps:ps", "Show the servers that run on this machine."),
    CommandEntry("stop", "vllm_cli.commands.stop:stop", "Stop a server, as a service manager does."),
    CommandEntry("standby", "vllm_cli.commands.standby:standby", "Keep imports in memory for warm starts."),
    CommandEntry("bench", "vllm_cli.commands.bench:bench", "Measure servers and their starts."),
    CommandEntry("explain", "vllm_cli.explain.command:explain", "Find in a log why vLLM failed, and what to do."),
)
"""The commands that a newcomer needs."""
COMMANDS: Final = (
    *FIRST_COMMANDS,
    CommandEntry("doctor", "vllm_cli.commands.doctor:doctor", "Report whether a server can be started here."),
    CommandEntry("load", "vllm_cli.commands.load:load", "Start one model of several."),
    CommandEntry("sleep", "vllm_cli.commands.load:sleep", "Put a model to sleep, to free the GPU's memory."),
    CommandEntry("unload", "vllm_cli.commands.load:unload", "Stop one model of several."),
    CommandEntry("caches", "vllm_cli.commands.caches:caches", "Show and remove the files that vLLM's starts keep."),
    CommandEntry("prefetch", "vllm_cli.commands.prefetch:prefetch", "Read a model into the page cache."),
    CommandEntry("bake", "vllm_cli.commands.bake:bake", "Keep in an image what makes its first start fast."),
    CommandEntry(
        "completion", "vllm_cli.commands.completion:completion", "Print shell completion of commands and flags."
    ),
    CommandEntry("run-batch", "vllm_cli.commands.of_vllm:run_batch", "vLLM's command: answer the requests of a file."),
)


class LazyGroup(CommandGroup):
    """Imports a command only when it runs. `--help` imports no command."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._entries = {entry.name: entry for entry in COMMANDS}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries.get(cmd_name)
        return load_command(entry) if entry else None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The names of the table, without importing the commands."""
        fitting = [entry for entry in self._entries.values() if entry.name.startswith(incomplete)]
        commands = [CompletionItem(entry.name, help=entry.help) for entry in fitting]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        further = COMMANDS[len(FIRST_COMMANDS) :]
        for title, entries in {"Commands": FIRST_COMMANDS, "Further commands": further}.items():
            with formatter.section(title):
                formatter.write_dl([(entry.name, entry.help) for entry in entries])


def load_command(entry: CommandEntry) -> click.Command:
    """Imports the command of a table entry. The command of an addition may be missing."""
    module, _, attribute = entry.target.partition(":")
    try:
        command = getattr(import_module(module), attribute)
    except ModuleNotFoundError as err:
        if err.name is None or not module.startswith(err.name):
            raise
        raise click.UsageError(f"this installation has no {entry.name}") from err
    if not isinstance(command, click.Command):
        raise TypeError(f"{entry.target} is not a click command")
    return command


_HELP = """Serve language models with a fast start.

\b
Examples:
  vllm-cli serve
  vllm-cli chat --temperature 0 --quick "What is the capital of France?"

vLLM's commands are those of the installed vLLM. Where both have a command, as chat, this is ours, and `vllm chat` is
vLLM's.
"""


@click.group(
    cls=LazyGroup,
    name="vllm-cli",
    help=_HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.option(
    *("-v", "--version"),
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, is_given: _show_versions(ctx) if is_given else None,
    help="Show the versions of this program and of the installed vLLM, and exit.",
)
def cli() -> None:
    """The group of all commands. Its only options are --help and --version."""


def _show_versions(ctx: click.Context) -> None:
    click.echo(f"vllm-cli {VERSION}")
    if vllm_file() is not None:
        from startup.vllm_arguments.installed import require_vllm

        click.echo(f"vLLM {require_vllm().version}")
    ctx.exit()


def main(args: Sequence[str] | None = None, serve_arguments: object = None) -> int:
    """Runs a command and returns the exit code. Shows a user's error on one line, without a traceback."""
    if exit_code := _run(args, serve_arguments):
        _discard_unwritten()
    return exit_code


def _run(args: Sequence[str] | None, serve_arguments: object) -> int:
    arguments = sys.argv[1:] if args is None else args
    is_start = [*arguments[:1]] == ["serve"]
    try:
        result = cli.main(args, prog_name="vllm-cli", standalone_mode=False, obj=serve_arguments)
    except click.ClickException as err:
        return _show(err, is_of_start=is_start)
    except (ConfigError, EnvError, CommandLineError) as err:
        return _fail(err, USAGE, USAGE_CAUSE)
    except StartupError as err:
        return _fail_start(err)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit:
        raise
    except BaseException as err:  # a panic of Rust is no Exception
        if (exit_code := _exit_code_of(err)) is not None:
            return exit_code
        if not is_start or (exit_code := _fail_uncaught(err, arguments)) is None:
            raise
        return exit_code
    return result if isinstance(result, int) else 0


def _discard_unwritten() -> None:
    """Drops output that cannot be written. Otherwise Python would try again at its end, and exit with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except ValueError:  # the stream is closed
            continue


def _show(err: click.ClickException, *, is_of_start: bool) -> int:
    if isinstance(err, click.NoSuchOption):
        whole = f"{err.ctx.info_name} {err.option_name}" if err.ctx else ""
        guess = did_you_mean(whole if whole in REPLACEMENTS else err.option_name, err.possibilities or ())
        err = click.UsageError(f"No such option: {err.option_name}{guess}", err.ctx)
    shown = io.StringIO()
    err.show(shown)
    if is_of_start:
        shown.write(f"{code_line(USAGE_CAUSE)}\n")
    with suppress(OSError):  # standard error may be on a full disk; the exit code still counts
        click.echo(hide_quoted(shown.getvalue(), sys.argv), err=True, nl=False)
    return err.exit_code


def _exit_code_of(err: BaseException) -> int | None:
    """The exit code for Ctrl-C during an import, a missing package or a full disk. None for other errors."""
    if _is_interruption(err):
        return INTERRUPTED
    if isinstance(err, OSError) and err.errno in _DISK_FULL and err.filename is None:
        return _fail(f"the output cannot be written: {err.strerror}. Free space, or write it elsewhere.", 1)
    if isinstance(err, ModuleNotFoundError) and err.name in MODULES:
        message = f"this command needs {err.name}, which is not installed: {INSTALL_COMMAND}"
        return _fail(message, START_FAILED, "package-missing")
    return None


def _fail_uncaught(err: BaseException, arguments: Sequence[str]) -> int | None:
    """Shows an uncaught error of a start with its cause. None for an error of vLLM itself."""
    from traceback import format_exception  # noqa: PLC0415 - only after a failure

    from startup.reports.crash.explanation import explainer  # noqa: PLC0415 - only after a failure

    cause = explainer().find_cause("".join(format_exception(err)).splitlines())
    if LauncherLine(arguments).engine == "vllm" and not (cause and cause.is_own_fault):
        return None
    shown = f"{type(err).__name__}: {err}"
    name = cause.name if cause and cause.is_explained else None
    if cause and (described := cause.describe_error(shown)):
        return _fail(described, START_FAILED, name)
    sys.excepthook(type(err), err, err.__traceback__)
    return _fail(shown, 1, name or OWN_FAULT_CAUSE)


def _is_interruption(err: BaseException | None) -> bool:
    """Whether Ctrl-C caused the error. During an import, Python 3.11 may wrap it in another error."""
    return any(isinstance(each, KeyboardInterrupt) for each in with_causes(err))


def _fail_start(err: StartupError) -> int:
    if not isinstance(err, CrashError) or err.json_line is None:
        return _fail(err, err.exit_code if isinstance(err, CrashError) else START_FAILED, err.cause)
    from startup.logs.setup import real_stderr  # noqa: PLC0415 - only after a crash

    with suppress(OSError):
        click.echo(hide_quoted(err.json_line, sys.argv), file=real_stderr())
    return err.exit_code


def _fail(err: Exception | str, exit_code: int, cause: str | None = None) -> int:
    """Shows the error. `cause` is given if the error ends a start."""
    if isinstance(err, Exception) and (env.VLLM_LOGGING_LEVEL.raw or "").upper() == "DEBUG":
        sys.excepthook(type(err), err, err.__traceback__)
    message = f"Error: {err}" if cause is None else with_code(f"Error: {err}", cause)
    shown = hide_quoted(message, sys.argv)
    with suppress(OSError):  # click takes a stream that vLLM 0.29 has prefixed for one of bytes
        if cause is None or not _log_as_json(shown, cause):
            sys.stderr.write(shown + "\n")
            sys.stderr.flush()
    return exit_code


def _log_as_json(message: str, cause: str) -> bool:
    """If the log's format is JSON, logs the error that ends a start. Returns whether it was logged."""
    if "logging" not in sys.modules:
        return False
    from startup.logs.setup import log_failure  # noqa: PLC0415 - only after a failure

    return log_failure(message, code_of(cause))
