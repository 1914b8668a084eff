"""Variables: every wrong one at once, misspelt names, and those that are for vLLM alone."""

from collections.abc import Callable

import pytest

from startup.preflight.report import PreflightReport

Preflight = Callable[..., PreflightReport]


def found(report: PreflightReport, severity: str) -> list[str]:
    return [f.message for f in report.findings if f.check == "environment" and f.severity == severity]


def test_all_wrong_variables_are_told_at_once(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "forksever")
    monkeypatch.setenv("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "soon")
    method, keep_alive = sorted(found(preflight("/nowhere"), "error"), reverse=True)
    assert "'forksever'" in method
    assert "did you mean 'forkserver'?" in method
    assert "VLLM_HTTP_TIMEOUT_KEEP_ALIVE" in keep_alive


def test_variable_that_other_checks_need_is_told_once(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "maybe")
    report = preflight("some/model")
    assert [f.check for f in report.findings] == ["environment"]


def test_misspelt_variable_of_ours_is_a_warning(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCLI_NO_SUCH_THING", "1")
    assert "VCLI_NO_SUCH_THING" in found(preflight("/nowhere"), "warning")[0]


def test_variable_that_only_vllm_reads_is_mentioned(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ATTENTION_BACKEND", "FLASH_ATTN")
    (message,) = found(preflight("/nowhere"), "info")
    assert "VLLM_ATTENTION_BACKEND" in message
    assert "VLLM_LOGGING_LEVEL" not in message
