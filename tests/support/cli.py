"""Runs programs to their end: commands of `vllm-cli`, and a test's own code in a new interpreter."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

CLI: Final = (sys.executable, "-m", "vllm_cli")


def run_cli(
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    launcher: tuple[str, ...] = (),
    timeout_s: float = 300.0,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """Runs a command of `vllm-cli` to its end. The result has the output as text.

    Args:
        arguments: the arguments after `vllm-cli`.
        environment: variables in addition to those of the test. The option `env` replaces all variables.
        launcher: the arguments of a command that executes the arguments after it.
        timeout_s: the time after which the command is killed and the call fails.
        options: the options of `subprocess.run`.
    """
    return _run([*launcher, *CLI, *arguments], environment, timeout_s, options)


def run_python(
    code: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    launcher: tuple[str, ...] = (),
    timeout_s: float = 200.0,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """Runs Python code to its end, with the arguments of `run_cli`."""
    return _run([*launcher, sys.executable, "-c", code, *arguments], environment, timeout_s, options)


def python_output(code: str, *arguments: object, **options: Any) -> str:
    """Runs Python code, with the arguments of `run_python`. Returns its output. Fails if the code fails."""
    done = run_python(code, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(
    arguments: Sequence[object], environment: Mapping[str, str] | None, timeout_s: float, options: Mapping[str, Any]
) -> "subprocess.CompletedProcess[str]":
    stdin = None if "input" in options else subprocess.DEVNULL
    usual: dict[str, Any] = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    usual["env"] = os.environ | (environment or {})
    return subprocess.run([*map(str, arguments)], text=True, timeout=timeout_s, **(usual | options))
