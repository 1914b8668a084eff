"""Runs vLLM's own `main` in this process, either for `serve` or for another command."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from base.exit_codes import INTERRUPTED, USAGE
from startup.errors import StartupError, with_code
from startup.hook import Name
from startup.storage.temp_folder import own_folder
from startup.vllm_arguments.installed import find_vllm
from startup.vllm_arguments.vllm_line import CONFIG, VllmLine

logger = logging.getLogger(__name__)

MAIN: Final = Name("vllm.entrypoints.cli.main", "main", ())


def run_serve(line: VllmLine) -> int:
    """Runs `vllm serve` until it returns, or raises SystemExit or an error of vLLM."""
    with ExitStack() as stack:
        return _run(("serve", *arguments_with_copy(line, stack)))


def run_plain(arguments: Sequence[str]) -> int:
    """Runs another command of vLLM, and reports its failures as vLLM does."""
    return without_click(lambda: _run(arguments))


def without_click(run: Callable[[], int]) -> int:
    """Runs vLLM. Prints its EOFError and BrokenPipeError, which click would treat as a closed terminal."""
    try:
        return run()
    except (EOFError, BrokenPipeError) as err:
        sys.excepthook(type(err), err, err.__traceback__)
        raise SystemExit(1) from err


def _run(arguments: Sequence[str]) -> int:
    folder = os.path.dirname(sys.executable)  # noqa: PTH120
    sys.argv = [os.path.join(folder, "vllm"), *arguments]  # noqa: PTH118
    _find_main()()
    return 0


def arguments_with_copy(line: VllmLine, stack: ExitStack) -> Sequence[str]:
    """Returns vLLM's arguments. If a value in the `--config` file was replaced, they name a copy of the file.

    The copy is in memory, because values may be secrets. Its name has a suffix that vLLM accepts. `stack`
    removes the copy.

    Raises:
        StartupError: a reference stays, or no copy can be made. vLLM would take `${KEY}` for the key.
    """
    arguments, file = line.arguments, line.config
    if file is None:
        return arguments
    if file.refused or file.may_refer:
        raise StartupError(f"{CONFIG} {file.path}: {'; '.join(file.refused) or file.problem}")
    for reference in file.missing:
        logger.warning("%s: %s: vLLM gets the text as it is", CONFIG, reference)
    if not file.is_changed:
        return arguments
    import yaml

    place = arguments.index(CONFIG) + 1
    try:
        name = stack.enter_context(own_folder()) / f"config{Path(file.path).suffix}"
        copy = stack.enter_context(os.fdopen(os.memfd_create(CONFIG), "w"))
        yaml.safe_dump(file.content, copy, sort_keys=False)
        copy.flush()
        name.symlink_to(f"/proc/{os.getpid()}/fd/{copy.fileno()}")
    except OSError as err:
        problem = f"no copy with the values of variables can be made: {err}"
        remedy = "Free disk space, inodes and descriptors, or set TMPDIR"
        raise StartupError(f"{CONFIG} {file.path}: {problem}. {remedy}") from err
    return [*arguments[:place], str(name), *arguments[place + 1 :]]


def run_other_command() -> int:
    """Runs the installed vLLM with this process's command line. Returns the exit code.

    Calls vLLM's function instead of the program `vllm`, which may be a link to this program.
    """
    if find_vllm() is None:
        remedy = "install it there (pip install vllm), or call vllm-cli by its own name"
        message = f"Error: {sys.argv[0]} runs vllm-cli, whose environment has no vLLM: {remedy}."
        sys.stderr.write(with_code(message, "package-missing") + "\n")
        return USAGE
    try:
        return int(_find_main()() or 0)
    except KeyboardInterrupt:
        return INTERRUPTED


def _find_main() -> Callable[[], Any]:
    """The function that the script `vllm` calls. If it is not in its usual module, uses the entry point."""
    try:
        main: Callable[[], Any] = MAIN.get(importlib.import_module(MAIN.module))
        return main
    except (ModuleNotFoundError, AttributeError):
        from importlib.metadata import entry_points

        script = next(iter(entry_points(group="console_scripts", name="vllm")), None)
        if script is None:
            raise
        other: Callable[[], Any] = script.load()
        return other
