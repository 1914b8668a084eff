"""The entry point. Sets signal handlers and the import path before slow imports."""

import _signal  # type: ignore[import-not-found]  # part of the interpreter's program, unlike `signal`

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # otherwise Ctrl-C during an import prints a traceback

import os
import signal
import sys

from vllm_cli.own_packages import describe_conflict  # before this program's other packages

# isort: split
from startup.settings.serve_arguments import LauncherLine, is_called_as_vllm

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def main() -> int:
    """Runs the program that the command line names. As process 1 of a container, runs it in a child."""
    _prepare_process()
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if is_called_as_vllm() and command != ["serve"]:
        return _run_vllms_command()
    if command == ["serve"]:
        return _serve(LauncherLine(arguments))
    if command == ["standby-template"] and len(arguments) > 1:  # started only by a standby
        return _run_template(arguments)
    return _run_command()


def _prepare_process() -> None:
    from base.machine.command_line import mask_command_line
    from base.machine.standard_streams import keep_standard_streams

    keep_standard_streams()
    mask_command_line()
    if os.getpid() == 1:
        from startup.processes.init_process import become_init

        become_init()


def _run_vllms_command() -> int:
    """Runs a command of the installed vLLM, under whose name this program was called."""
    from startup.vllm.vllm_main import run_other_command

    _raise_at_sigint()
    return run_other_command()


def _serve(line: LauncherLine) -> int:
    """Asks a standby to fork the server. Without a standby, starts the server in this process."""
    from startup.standby.front_process import serve_warm

    if (exit_code := serve_warm(line)) is not None:
        return exit_code
    if sys.dont_write_bytecode:
        from pathlib import Path

        from startup.storage.bytecode import use_kept_bytecode

        use_kept_bytecode(Path(_ROOT, "vllm_cli"))
    return _run_command(line)


def _run_template(arguments: list[str]) -> int:
    """Runs a template process, which imports modules, then forks servers. Returns only in these servers."""
    from base.machine.descriptors import low_numbers_taken

    with low_numbers_taken():
        from startup.processes.quick_end import end_without_finalizing
        from vllm_cli.template_process import become_server

    link = become_server(*arguments)
    exit_code = _run_command(link.arguments)
    link.report_exit(exit_code)
    return end_without_finalizing(exit_code)  # a forked server has all modules of its engine


def _run_command(arguments: object = None) -> int:
    """Runs a click command. `arguments` are those after `serve`, if that is the command."""
    from base.exit_codes import INTERRUPTED
    from vllm_cli.main import main as run_command

    if (conflict := describe_conflict()) is not None:
        sys.stderr.write(f"Warning: {conflict}\n")

    try:
        _raise_at_sigint()
        return run_command(serve_arguments=arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if callable(signal.getsignal(signal.SIGINT)):  # the interpreter's end would print a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _raise_at_sigint() -> None:
    """Restores Python's SIGINT handler, which raises KeyboardInterrupt. An ignored SIGINT stays ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    # `python -m` adds the working folder, in which a user's `click.py` would hide the package click.
    if not sys.flags.safe_path and sys.path[0] == os.getcwd() != _ROOT:  # noqa: PTH109
        del sys.path[0]
    sys.exit(main())
