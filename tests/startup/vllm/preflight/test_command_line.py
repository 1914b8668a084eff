"""Faults of the command line: errors only where this vLLM certainly rejects the words."""

from dataclasses import replace

import pytest

from startup.preflight.report import PreflightReport
from startup.vllm.preflight.command_line import command_line_findings
from tests.startup.vllm.preflight.conftest import CheckStart


def _found(start: CheckStart, words: str, **options: bool) -> list[tuple[str, str, str]]:
    return [tuple(finding) for finding in command_line_findings(start(*words.split(), **options))]


@pytest.mark.parametrize(
    "words",
    [
        "m",
        "m --enable-auto-tool-choice --tool-call-parser hermes",
        "m --tool-call-parser unknown",
        "m --enable-auto-tool-choice --tool-call-parser mine --tool-parser-plugin plugin.py",
        "m --attention-backend auto",
        "m --attention-backend flash_attn",
        "m --load-format Dummy",
        "m --max-num-seqs 8 --max-num-batched-tokens 8",
        "m --headless",
        "m --gpu-memory-utilization 1",
    ],
)
def test_valid_words(start, words):
    assert _found(start, words) == []


@pytest.mark.parametrize(
    ("words", "check", "message"),
    [
        ("m --dtpe half", "usage", "no flag --dtpe"),
        ("m --dtype hlf", "usage", "'hlf' is not one of"),
        ("m --gpu-memory-utilization 2", "range", "must be 1 or less"),
        ("m --enable-auto-tool-choice", "tool_parser", "needs --tool-call-parser"),
        ("m --enable-auto-tool-choice --tool-call-parser herms", "tool_call_parser", "did you mean 'hermes'"),
        ("m --enable-log-outputs", "logging", "needs --enable-log-requests"),
        ("m --attention-backend flash", "attention_backend", "did you mean 'FLASH_ATTN'"),
        ("m --load-format safetensor", "load_format", "did you mean 'safetensors'"),
        ("m --max-num-seqs 9 --max-num-batched-tokens 8", "batch", "at least --max-num-seqs 9"),
        ("m --headless --api-server-count 2", "headless", "remove --api-server-count 2"),
        ("m --data-parallel-hybrid-lb --data-parallel-external-lb", "load_balancing", "choose one of"),
        ("m --sse-keep-alive-interval -1", "range", "must be 0 or more, got -1"),
    ],
)
def test_errors(start, words, check, message):
    ((found, severity, text),) = _found(start, words)
    assert (found, severity) == (check, "error")
    assert message in text


def test_a_rule_that_this_vllm_has_not_is_not_applied(start):
    checked = start("m", "--enable-auto-tool-choice")
    without = replace(checked, facts=checked.facts._replace(rules=()))
    assert list(command_line_findings(without)) == []


@pytest.mark.parametrize("words", ["m --new-flag 1", "m --dtype new", "m --load-format new"])
def test_what_a_plugin_may_know_is_no_error(start, words):
    assert all(severity == "warning" for _, severity, _ in _found(start, words, has_plugin=True))


def test_all_faults_are_told_at_once(start):
    found = command_line_findings(
        start(*["m", "--dtype", "hlf", "--port", "x", "--max-num-seqs", "0", "--gpu-memory-utilization", "2"])
    )
    err = PreflightReport(tuple(found), 0).as_error()
    assert str(err).splitlines()[0] == "4 faults:"


def test_a_config_file_that_vllm_would_not_read_is_a_warning(start):
    ((_, severity, text),) = _found(start, "m --config=settings.yaml")
    assert severity == "warning"
    assert "write `--config settings.yaml`" in text
