"""Wrong variables are reported at once, and so are misspelt names and variables that only vLLM reads."""

import os
from collections.abc import Callable
from pathlib import Path

from envs.registry import env
from startup.preflight.report import PreflightReport

Preflight = Callable[..., PreflightReport]


def found(report: PreflightReport, severity: str) -> list[str]:
    return [f.message for f in report.findings if f.check == "environment" and f.severity == severity]


def test_all_wrong_variables_are_reported_at_once(preflight, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "forksever")
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "soon")
    method, keep_alive = sorted(found(preflight("/nowhere"), "error"), reverse=True)
    assert "'forksever'" in method
    assert "did you mean 'forkserver'?" in method
    assert "VLLM_HTTP_TIMEOUT_KEEP_ALIVE" in keep_alive


def test_a_wrong_variable_that_other_checks_need_is_reported_once(preflight, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "maybe")
    report = preflight("some/model")
    assert [f.check for f in report.findings] == ["environment"]


def test_a_misspelt_variable_of_vllm_cli_is_a_warning(preflight, monkeypatch):
    monkeypatch.setenv("VCLI_NO_SUCH_THING", "1")
    assert "VCLI_NO_SUCH_THING" in found(preflight("/nowhere"), "warning")[0]


def test_a_variable_that_only_vllm_reads_is_information(preflight, monkeypatch):
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    (message,) = found(preflight("/nowhere"), "info")
    assert "VLLM_ATTENTION_BACKEND" in message
    assert "VLLM_LOGGING_LEVEL" not in message


def test_a_cache_folder_that_cannot_be_written_to_is_a_warning(preflight, monkeypatch, tmp_path):
    def warnings() -> list[str]:
        return [f.message for f in preflight("/nowhere").findings if f.check == "cache"]

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "new" / "folder"))
    assert warnings() == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "file" / "folder"))
    [message] = warnings()
    start = f"nothing is cached between starts: {tmp_path}/file/folder/vllm_cli cannot be written to (Not a directory)"
    assert message.startswith(start)
    assert "set VLLM_CACHE_ROOT" in message
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/proc/folder")  # writable by its mode, for root
    [message] = warnings()
    assert "/proc/folder/vllm_cli cannot be written to" in message


def test_a_user_without_a_home_has_a_cache_folder(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert env.XDG_CACHE_HOME.get() == Path("/.cache")
