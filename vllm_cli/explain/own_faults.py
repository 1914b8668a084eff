"""Decides from a traceback whether vllm-cli or vLLM has failed.

Most stacks contain frames of vllm-cli, because vllm-cli calls vLLM and wraps vLLM's functions. Such a frame
counts only if it called no code of vLLM or a package, or if plain vLLM does not run such code (`_ADDED`).
"""

import re
from pathlib import Path
from typing import Final

_DRIVEN: Final = (
    "multiprocessing/forkserver.py",
    "multiprocessing/popen_forkserver.py",
    "multiprocessing/popen_spawn_posix.py",
    "multiprocessing/resource_tracker.py",
    "multiprocessing/spawn.py",
)
"""Modules of the standard library that vllm-cli uses in another way than plain vLLM. Plain vLLM does not use
those of the forkserver. It uses the others, so they count only below a frame of vllm-cli."""
_ADDED: Final = (
    "startup/imports/stand_ins.py",
    "startup/processes/",
    "startup/vllm/fork/",
    "startup/imports/late_modules.py",
    "startup/imports/late_names.py",
    "startup/imports/late_packages.py",
    "startup/vllm/patches/engine_idle.py",
)
"""Code of vllm-cli that calls libraries where plain vLLM does not call them. Its failures are vllm-cli's."""
_BEGINS: Final = (
    ("startup/vllm/fork/recorded_ends.py", "run_and_record"),
    ("multiprocessing/process.py", "run"),
    ("multiprocessing/spawn.py", "_fixup_main_from_name"),
    ("multiprocessing/spawn.py", "_fixup_main_from_path"),
)
"""Functions that call the main function of a vLLM process, or import the program that started it."""
_PASSES_ON: Final = (
    ("startup/imports/late_names.py", "import_late"),
    ("startup/vllm/patches/engine_idle.py", "step_and_poll"),
    ("startup/vllm/patches/engine_idle.py", "handle_and_return"),
)
"""Functions in `_ADDED` whose calls plain vLLM also makes."""
_IN_PLACE: Final = (
    ("startup/vllm/patches/engine_idle.py", "stays_idle"),
    ("startup/vllm/patches/engine_idle.py", "prepare_and_poll"),
    ("startup/vllm/serving/serving_events.py", "bind"),
)
"""Functions that replace a library's, or wait in its place. Errors of the machine in them are no faults."""
_EMBEDDED: Final = ("server/", "startup/embedded/")
"""Folders of the embedded engine. All code of this engine belongs to vllm-cli."""
_INTENDED: Final = re.compile(
    r"(?!startup\.processes\.forkserver\.)(?:base|envs|router|server|startup|vllm_cli)\.|KeyboardInterrupt|"
    "SystemExit|RuntimeError: --compile-cache require"
)
"""Beginnings of exceptions with which vllm-cli or a signal ends a start on purpose. No failed forks."""

_ROOT: Final = f"{Path(__file__).parents[2]}/"
_OWN: Final = re.compile(r"(?:base|envs|router|server|startup|vllm_cli)/.*")
_IN_WHEEL: Final = "vllm_cli/packages/"
_LIBRARY: Final = re.compile(r".*/lib(?:32|64)?/python3\.\d{1,3}t?/(?!(?:site|dist)-packages/)(.*)")


class TracebackOrigin:
    """Takes the frames of one traceback, outermost first, and decides whether vllm-cli is at fault."""

    def __init__(self) -> None:
        self._is_in_ours = False
        """Whether the innermost frame is vllm-cli's or in `_DRIVEN`. The standard library is skipped."""
        self._is_below_added = False
        self._is_embedded = False

    def add_frame(self, file: str, function: str) -> None:
        library = _LIBRARY.fullmatch(file)
        own = None if library else _OWN.fullmatch(_in_root(file))
        if own:
            self._add_own(own[0], function)
        elif library is None and not file.startswith("<"):
            self._is_in_ours = False
        elif library and (library[1], function) in _BEGINS:
            self._is_in_ours = self._is_below_added = False
        elif library and library[1] in _DRIVEN:
            self._is_in_ours = self._is_in_ours or "forkserver" in library[1]

    def is_own(self, error: str) -> bool:
        """Whether this exception, written as `Type: message`, is a fault of vllm-cli."""
        is_ours = self._is_in_ours or self._is_below_added
        return is_ours and not self._is_embedded and not _INTENDED.match(error)

    def _add_own(self, path: str, function: str) -> None:
        if (path, function) in _IN_PLACE:
            return
        self._is_embedded |= path.startswith(_EMBEDDED)
        self._is_in_ours = True
        if (path, function) in _BEGINS:
            self._is_below_added = False
        elif path.startswith(_ADDED) and (path, function) not in _PASSES_ON:
            self._is_below_added = True


def _in_root(file: str) -> str:
    """The file's path inside a checkout of vllm-cli, even if the file is in an installed wheel."""
    _, is_installed, path = file.rpartition("-packages/")
    if not is_installed:
        return file.removeprefix(_ROOT)
    return path.removeprefix(_IN_WHEEL) if path.startswith("vllm_cli/") else ""
