"""Builds and releases of Python that are not tested are refused or reported."""

import sys

import pytest

from startup.embedded.installed import require_embedded_engine
from startup.errors import CommandLineError
from startup.processes import interpreter
from startup.vllm.launch.plain_start import plain_start_reason
from startup.vllm_words.command_line import CommandLine
from startup.vllm_words.installed import InstalledVllm


def test_the_free_threaded_build_is_refused_by_name_and_starts_vllm_plain(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "abiflags", "t")
    with pytest.raises(CommandLineError, match=r"Python 3\.\S+ \(free-threaded\) is not supported: use the build"):
        require_embedded_engine()
    reason = plain_start_reason(InstalledVllm("0.32.0", tmp_path), CommandLine.of(["model"]))
    assert "(free-threaded) is not supported" in reason.text


def test_this_python_is_tested():
    assert interpreter.is_tested()
    assert not interpreter.is_free_threaded()
