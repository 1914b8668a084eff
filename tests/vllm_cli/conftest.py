"""Fixtures of the command line's tests: a clean environment, parsed configurations, child processes."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from envs.registry import OWN_PREFIX, variables
from startup.settings.config import StartupConfig


@pytest.fixture(autouse=True)
def no_variable_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [name for name in os.environ if name.startswith(OWN_PREFIX)]
    for name in [*ours, *(variable.name for variable in variables())]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def parse() -> Callable[..., StartupConfig]:
    """A function that returns the configuration of `vllm-cli serve ARGUMENTS...`."""
    from startup.arguments.serve_command import READ
    from vllm_cli.commands.serve import serve

    def parse_arguments(*arguments: str) -> StartupConfig:
        with serve.make_context("serve", list(arguments)) as ctx:
            return ctx.meta[READ].start

    return parse_arguments


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that runs a command in this process. Its result is like that of `run_cli`."""
    from vllm_cli.main import main

    def run(*arguments: object, input: str | None = None) -> subprocess.CompletedProcess[str]:
        if input is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(input))
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run
