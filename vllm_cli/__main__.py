"""The entry point. Sets signal handlers and the import path before slow imports."""

import _signal  # type: ignore[import-not-found]  # part of the interpreter's program, unlike `signal`

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # otherwise Ctrl-C during an import prints a traceback

import os
import signal
import sys

from vllm_cli.own_packages import describe_conflict  # before this program's other packages

# isort: split
from startup.settings.serve_words import ServeWords, is_called_as_vllm, use_vllm_engine

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def main() -> int:
    """Runs the command. As process 1 of a container, acts as init and runs the command in a child."""
    from base.machine.command_line import mask_command_line

    mask_command_line()
    if os.getpid() == 1:
        from startup.processes.init_process import become_init

        become_init()
    if is_called_as_vllm():
        if sys.argv[1:2] != ["serve"]:
            from startup.vllm.vllm_main import run_other_command

            _raise_at_sigint()
            return run_other_command()
        use_vllm_engine()
    given = ServeWords(sys.argv[2:]) if sys.argv[1:2] == ["serve"] else None
    if given is not None:
        from startup.standby.front_process import serve_warm

        if (exit_code := serve_warm(given)) is not None:
            return exit_code
        if sys.dont_write_bytecode:
            from pathlib import Path

            from startup.storage.caches import use_kept_bytecode

            use_kept_bytecode(Path(_ROOT, "vllm_cli"))
    if sys.argv[1:2] == ["standby-template"] and len(sys.argv) > 3:  # started only by a standby
        return _run_template(*sys.argv[2:])
    return _run(given)


def _run(given: ServeWords | None) -> int:
    from base.exit_codes import INTERRUPTED
    from vllm_cli.main import main as run_command

    if (conflict := describe_conflict()) is not None:
        sys.stderr.write(f"Warning: {conflict}\n")

    try:
        _raise_at_sigint()
        return run_command(serve_words=given)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if callable(signal.getsignal(signal.SIGINT)):  # the interpreter's end would print a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _run_template(kind: str, standby_fd: str, *models: str) -> int:
    """Runs a template process: imports modules, then forks servers. Returns only in the forked servers."""
    from base.machine.descriptors import low_numbers_taken

    with low_numbers_taken():  # keeps these numbers free: front processes have files there
        import vllm_cli.commands.serve  # noqa: F401 - what every server imports
        from startup.logs.setup import configure_logging, log_options_of_environment
        from startup.processes.quick_end import end_without_finalizing
        from startup.standby.template import wait_for_start

    configure_logging(log_options_of_environment(), role="template")
    link = wait_for_start(kind, models, int(standby_fd))
    exit_code = _run(link.given)
    link.report_exit(exit_code)
    return end_without_finalizing(exit_code)  # a forked server has all modules of its engine


def _raise_at_sigint() -> None:
    """Restores Python's SIGINT handler, which raises KeyboardInterrupt. An ignored SIGINT stays ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    # `python -m` adds the working folder, in which a user's `click.py` would hide the package click.
    if not sys.flags.safe_path and sys.path[0] == os.getcwd() != _ROOT:  # noqa: PTH109
        del sys.path[0]
    sys.exit(main())
