"""`vllm-cli standby`: runs, shows or stops the process that has modules in memory for later starts."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Final

import click

from base.exit_codes import OK, START_FAILED
from base.machine.processes import is_alive
from startup.arguments.errors import InputError
from startup.arguments.param_types import SIZE
from startup.errors import StartupError
from startup.logs.setup import configure_logging, log_options_of_environment
from startup.settings.serve_arguments import vllm_file
from startup.standby import sockets
from startup.standby.sockets import EMBEDDED, TEMPLATE_KINDS, VLLM_COMPILED, VLLM_EAGER
from startup.standby.status import STATUS, STOP, NoStandbyError, StandbyStatus, ask
from vllm_cli.terminal import Reporter, align

NOT_RUNNING: Final = 1

_GROUPS: Final = {"vllm": (VLLM_EAGER, VLLM_COMPILED), **{kind: (kind,) for kind in TEMPLATE_KINDS}}
_POLL_S: Final = 0.1
_STOP_S: Final = 60.0
"""Seconds after which a cancelled start is killed."""


@click.group("standby", invoke_without_command=True, context_settings={"max_content_width": 110})
@click.option(
    "--for",
    "wanted",
    metavar="ENGINES",
    show_default="vllm if it is installed, else embedded",
    help=f"Engines whose modules are kept imported, separated by commas: {', '.join(_GROUPS)}.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="MODEL",
    help="Also keep this model's class and tokenizer in memory, and its weights in the page cache. Repeatable.",
)
@click.option(
    "--idle-exit",
    "idle_exit_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after this time without a start.",
)
@click.option(
    "--max-memory",
    "max_memory_bytes",
    type=SIZE,
    metavar="SIZE",
    help="Most memory (PSS), such as 2G or 900M. Above it, the standby drops the imports used longest ago.",
)
@click.option("--detach", "is_detached", is_flag=True, help="Run in the background. Return once the imports are done.")
@click.pass_context
def standby(  # noqa: PLR0913 - one argument per option
    ctx: click.Context,
    *,
    wanted: str | None,
    models: tuple[str, ...],
    idle_exit_s: float | None,
    max_memory_bytes: int | None,
    is_detached: bool,
) -> int | None:
    """Keep imports in memory for warm starts, in which `serve` forks its server from this process.

    `serve` finds the standby of this user and Python environment by itself (see `serve --standby`). When the
    standby ends, running servers continue.

    \b
    Examples:
      vllm-cli standby --detach
      vllm-cli standby --for embedded --model HuggingFaceTB/SmolLM2-135M-Instruct
      vllm-cli standby status
      vllm-cli standby stop

    Exit codes: 0 the standby has ended, or runs (--detach); 2 usage; 3 it could not start.
    """
    if ctx.invoked_subcommand is not None:
        return None
    kinds = _parse_kinds(wanted)
    models = tuple(os.path.abspath(model) if os.path.isdir(model) else model for model in models)  # noqa: PTH100, PTH112
    from startup.standby.standby import StandbyOptions, run_standby  # noqa: PLC0415 - slow to import for --help

    options = StandbyOptions(kinds=kinds, models=models, idle_exit_s=idle_exit_s, max_memory_bytes=max_memory_bytes)

    def run() -> int:
        if is_detached:
            os.chdir(sockets.module_folder() or os.curdir)
        configure_logging(log_options_of_environment(), role="standby")
        return run_standby(options)

    return _detach(run) if is_detached else run()


@standby.command("status")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
def status(*, is_json: bool) -> int:
    """Show state, starts and memory of the running standby's template processes.

    Exit codes: 0 a standby runs, 1 no standby runs.
    """
    found = _ask(STATUS)
    if found is None:
        return NOT_RUNNING
    click.echo(found.to_json() if is_json else "\n".join(_table(found)))
    return 0


@standby.command("stop")
def stop() -> int:
    """Stop the running standby. Servers that were started from it continue.

    Exit codes: 0 the standby has stopped, 1 no standby was running.
    """
    found = _ask(STOP)
    if found is None:
        return NOT_RUNNING
    while True:
        try:
            ask(STATUS)
        except NoStandbyError:
            break
        time.sleep(_POLL_S)
    click.echo(f"The standby {found.pid} has stopped.")
    return 0


def _parse_kinds(wanted: str | None) -> tuple[str, ...]:
    names = (wanted or ("vllm" if vllm_file() else EMBEDDED)).split(",")
    unknown = [name for name in names if name not in _GROUPS]
    if unknown:
        raise InputError(f"--for {unknown[0]!r} is not one of {', '.join(_GROUPS)}.")
    return tuple(dict.fromkeys(kind for name in names for kind in _GROUPS[name]))


def _detach(run: Callable[[], int]) -> int:
    """Runs the standby in a fork with a session of its own, and waits until its imports are done.

    Also returns in the fork, with the result of `run`. Ctrl-C and SIGTERM during the wait end the fork.
    """
    try:
        os.close(sockets.create_folder())
    except OSError as err:
        message = f"the standby's folder {sockets.socket_folder()} cannot be used: {err}"
        raise StartupError(message, cause="standby-unusable") from err
    path = Path(sockets.socket_folder(), "standby.log")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    log = os.fdopen(fd, "wb")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    pid = os.fork()  # a new program would import everything again
    if pid == 0:
        _enter_session(log)
        return run()
    log.close()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with closing(Reporter()) as reporter:
            outcome = _wait(pid, reporter)
    except BaseException:
        _end(pid)
        raise
    if outcome is None:
        from vllm_cli.supervised_command import last_lines  # noqa: PLC0415 - slow to import for --help

        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        code = 128 - code if code < 0 else code or START_FAILED
        click.echo(f"{last_lines(path)}\nError: the start ended with exit code {code}. Its log is {path}", err=True)
        return code
    click.echo(f"{outcome}. Its log is {path}")
    return OK


def _enter_session(log: IO[bytes]) -> None:
    os.setsid()
    with log, open(os.devnull, "rb") as nothing:  # noqa: PTH123
        for source, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source.fileno(), number)


def _wait(pid: int, reporter: Reporter) -> str | None:
    begin_s = time.monotonic()
    while is_alive(pid):
        with suppress(NoStandbyError):
            if (found := ask(STATUS)).pid == pid and found.is_settled:
                for template in (each for each in found.templates if each.state == "failed"):
                    reporter.note(f"Warning: {template.kind}: {template.error} (see the log)")
                return f"The standby {pid} is ready"
        reporter.update(f"{time.monotonic() - begin_s:5.1f} s  importing")
        time.sleep(_POLL_S)
    return None


def _end(pid: int) -> None:
    """Stops the standby. A second Ctrl-C kills its processes."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        end_s = time.monotonic() + _STOP_S
        try:
            while is_alive(pid) and time.monotonic() < end_s:
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            pass
        if is_alive(pid):
            os.killpg(pid, signal.SIGKILL)


def _ask(request: bytes) -> StandbyStatus | None:
    try:
        return ask(request)
    except NoStandbyError as err:
        reason = str(err)
        click.echo(f"{reason[:1].upper()}{reason[1:]}.", err=True)
        return None


def _table(found: StandbyStatus) -> list[str]:
    rows = [("KIND", "STATE", "PID", "IMPORTS", "STARTS", "MEMORY")]
    for entry in found.templates:
        imports = "-" if entry.import_s is None else f"{entry.import_s:.1f} s"
        state = f"{entry.state}: {entry.error}" if entry.error else entry.state
        memory = f"{entry.memory_bytes / (1 << 30):.2f} GiB"
        rows.append((entry.kind, state, str(entry.pid or "-"), imports, str(entry.num_starts), memory))
    return [f"standby {found.pid}, {found.memory_bytes / (1 << 30):.2f} GiB", *align(rows)]
