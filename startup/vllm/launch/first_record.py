"""Records vLLM's flags for a check without a start, such as `--preflight-only`, in a process of its own.

A start imports vLLM anyway, so it gathers the facts itself (`startup.vllm.launch.start`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from envs.environment import snapshot
from startup.processes.new_program import OWN_PACKAGES_MODULE
from startup.storage.caches import of_type
from startup.vllm.vllm_imports import import_api_server
from startup.vllm_words.command_line import VllmLine
from startup.vllm_words.facts import KeptFacts, VllmFacts, read_facts
from startup.vllm_words.installed import InstalledVllm, require_vllm
from startup.vllm_words.preflight.surroundings import rejected_variables

_CODE: Final = (
    f"import sys; sys.path.append(sys.argv[1]); import {OWN_PACKAGES_MODULE}; from {__name__} import main; main()"
)
_ROOT: Final = str(Path(__file__).parents[3])
_TIMEOUT_S: Final = 600.0
"""The most seconds until the flags are recorded. It takes 3 to 15, and a minute if the disk is slow."""
_OF_RECORD: Final = ("VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "VLLM_PLUGINS", "VLLM_TARGET_DEVICE")
"""Variables of vLLM on which the record depends. vLLM accepts any value of these."""

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
            facts = read_facts(vllm)
            return CheckedLine(line.read_again(facts if facts.flags else _record(vllm, facts, note)))
    except _UnrecordedError as err:
        return CheckedLine(line, str(err))


class _UnrecordedError(Exception):
    """vLLM's parser cannot be loaded here. The message has the reason."""


def _record(vllm: InstalledVllm, facts: VllmFacts, note: Callable[[str], None]) -> VllmFacts:
    note(f"No start has recorded the flags of vLLM {vllm.version} yet: loading its parser, once (some seconds)")
    variables = snapshot()
    try:
        gathered = _gather(variables)
    except _UnrecordedError:
        gathered = _gather_without(variables)
        if not any(rejected_variables(gathered)):
            raise
    return gathered._replace(installed_plugins=facts.installed_plugins)


def _gather_without(variables: Mapping[str, str]) -> VllmFacts:
    """The facts without the variables of vLLM. None of them if vLLM cannot be loaded without these either."""
    kept = {name: value for name, value in variables.items() if not name.startswith("VLLM_") or name in _OF_RECORD}
    with suppress(_UnrecordedError):
        return _gather(kept) if kept != variables else VllmFacts()
    return VllmFacts()


def _gather(variables: Mapping[str, str]) -> VllmFacts:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CODE, _ROOT],
            env=variables,
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
        return of_type(VllmFacts)(json.loads(done.stdout))
    except ValueError as err:
        raise _UnrecordedError(str(err)) from err


def main() -> None:
    """The process: loads vLLM's parser, records the facts, and writes them to standard output as JSON."""
    output = os.dup(1)
    with suppress(OSError):  # standard error is closed
        os.dup2(2, 1)  # for what vLLM prints
    kept = KeptFacts(require_vllm())
    if failed := import_api_server():
        sys.exit("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    kept.record(imports_all=True)
    facts = kept.read()
    with open(output, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
        json.dump(facts if facts.flags else kept.gather(), file)
    os._exit(0)  # vLLM's threads have nothing to finish
