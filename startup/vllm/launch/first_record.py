"""Records vLLM's flags for a check without a start, such as `--preflight-only`, in a process of its own.

A start imports vLLM anyway, so it gathers the record itself (`startup.vllm.launch.start`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from envs.environment import snapshot
from startup.processes.new_program import OWN_PACKAGES_MODULE
from startup.storage.caches import of_type
from startup.vllm.vllm_imports import import_api_server
from startup.vllm_arguments.installed import InstalledVllm, require_vllm
from startup.vllm_arguments.vllm_line import VllmLine
from startup.vllm_arguments.vllm_record import RecordFile, VllmRecord, read_record

_CODE: Final = (
    f"import sys; sys.path.append(sys.argv[1]); import {OWN_PACKAGES_MODULE}; from {__name__} import main; main()"
)
_ROOT: Final = str(Path(__file__).parents[3])
_TIMEOUT_S: Final = 600.0
"""The most seconds until the flags are recorded. It takes 3 to 15, and a minute if the disk is slow."""

_recording = Lock()
"""Held while a process records, so that a router, which checks models on several threads, starts one."""


class CheckedLine(NamedTuple):
    """A command line, read with all flags of vLLM if they could be recorded."""

    line: VllmLine
    problem: str | None = None
    """Why vLLM's flags could not be recorded. Then only flags that the launcher itself knows are read."""


def line_for_check(vllm: InstalledVllm, line: VllmLine, note: Callable[[str], None]) -> CheckedLine:
    """Reads the line again for a check without a start. Records vLLM's flags first if no start has done so.

    `note` gets a line that says that this takes a while.
    """
    try:
        with _recording:
            record = read_record(vllm)
            return CheckedLine(line.read_again(record if record.flags else _record(vllm, record, note)))
    except _UnrecordedError as err:
        return CheckedLine(line, str(err))


class _UnrecordedError(Exception):
    """vLLM's parser cannot be loaded here. The message has the reason."""


def _record(vllm: InstalledVllm, record: VllmRecord, note: Callable[[str], None]) -> VllmRecord:
    note(f"No start has recorded the flags of vLLM {vllm.version} yet: loading its parser, once (some seconds)")
    return _gather()._replace(installed_plugins=record.installed_plugins)


def _gather() -> VllmRecord:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CODE, _ROOT],
            env=snapshot(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise _UnrecordedError(str(err)) from err
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _UnrecordedError(lines[-1] if lines else f"exit code {done.returncode}")
    try:
        return of_type(VllmRecord)(json.loads(done.stdout))
    except ValueError as err:
        raise _UnrecordedError(str(err)) from err


def main() -> None:
    """The process: loads vLLM's parser, keeps the record, and writes it to standard output as JSON."""
    output = os.dup(1)
    with suppress(OSError):  # standard error is closed
        os.dup2(2, 1)  # for what vLLM prints
    kept = RecordFile(require_vllm())
    if failed := import_api_server():
        sys.exit("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    kept.update(imports_all=True)
    record = kept.read()
    with open(output, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
        json.dump(record if record.flags else kept.gather(), file)
    os._exit(0)  # vLLM's threads have nothing to finish
