"""The log of a crash is kept without secrets; the digest reaches Kubernetes."""

import json
import sys
from pathlib import Path

import pytest

from envs.registry import env
from startup.causes.first_cause import Cause
from startup.crash import crash_report
from startup.crash.crash_report import (
    build_error,
    describe_crash,
    find_crash,
    keep_log,
    was_stopped,
    write_termination_message,
)
from startup.crash.output_record import OutputRecord

_CAUSE = Cause("EngineCore pid=5", "while it loaded the model", "ValueError: no weights", None, 3)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutputRecord:
    monkeypatch.setenv(env.VLLM_CACHE_ROOT.name, str(tmp_path / "cache"))
    return OutputRecord(tmp_path)


def test_the_kept_log_has_no_secrets_and_no_control_characters(record, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", "--api-key", "sk-0123456789"])
    record.append("key sk-0123456789 https://me:secret@host HF_TOKEN=hf_abc \x1b[31mred\n")
    path = keep_log(record)
    assert path is not None
    assert not any(text in path.read_text() for text in ("sk-0123456789", "secret", "hf_abc", "\x1b"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_lines_of_the_kept_log_have_the_numbers_of_the_digest(record):
    record.append("shards:  0%\rshards: 50%\rshards: 100%\n(EngineCore pid=5) ValueError: no weights\n")
    cause, path = find_crash(record), keep_log(record)
    assert cause is not None
    assert path is not None
    assert path.read_text().splitlines()[cause.line - 1].endswith("ValueError: no weights")


def test_few_logs_of_bounded_size_are_kept(record, monkeypatch):
    monkeypatch.setattr(crash_report, "_MOST_CHARS", 100)
    record.append("first\n" + "x" * 1000 + "\nlast\n")
    path = keep_log(record)
    assert path is not None
    text = path.read_text()
    assert (text[:5], text[-5:], len(text) < 300) == ("first", "last\n", True)
    for number in range(20):
        (path.parent / f"2020-01-{number}.log").write_text("")
    keep_log(record)
    assert len(list(path.parent.glob("*.log"))) == 10
    assert path.exists()


def test_a_cache_that_cannot_be_written_costs_only_the_log(record, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(env.VLLM_CACHE_ROOT.name, str(tmp_path / "file"))
    err = build_error(_CAUSE, record, exit_code=3, log_format="text")
    assert "Log: " not in str(err)
    assert str(err).startswith("EngineCore (pid 5) failed while it loaded the model.\nCause: ValueError: no weights\n")


def test_the_digest_is_one_record_of_a_json_log(record):
    err = build_error(_CAUSE, record, exit_code=1, log_format="json")
    line = json.loads(err.json_line or "")
    assert (line["level"], line["message"]) == ("ERROR", str(err))
    assert line["digest"]["process"] == "EngineCore pid=5"
    assert line["digest"]["phase"] == "loaded the model"


def test_kubernetes_gets_the_reason_if_it_asks_for_it(tmp_path, monkeypatch):
    path = tmp_path / "termination-log"
    monkeypatch.setenv(env.VCLI_TERMINATION_LOG.name, str(path))
    write_termination_message("no file is created")
    assert not path.exists()
    path.write_text("an earlier container's reason")
    write_termination_message("x" * 10_000)
    assert path.read_text() == "x" * 4096


def test_a_server_that_was_stopped_has_not_crashed(record):
    assert find_crash(record) is None
    record.append("(EngineCore pid=5) INFO 01-01 00:00:00 [core.py:9] trigger received signal=SIGTERM\n")
    cause = find_crash(record)
    assert cause is not None
    assert was_stopped(cause)
    assert describe_crash(record, "API server", "", "no message") == Cause("API server", "", "no message", None, 1)


def test_what_the_embedded_engine_reports_counts_without_an_exception(record):
    killed = describe_crash(record, "engine", "while it served", "its process 5 was killed by SIGSEGV")
    assert killed.known is not None
    assert killed.known.name == "native-crash"
    record.append("ERROR 01-01 00:00:00 (engine) server.engine.process: the engine failed\n")
    record.append(
        "  Traceback (most recent call last):\n    File \"x.py\", line 1, in load_model\n  KeyError: 'layers'\n"
    )
    found = describe_crash(record, "engine", "in phase wait_engine", "the engine failed")
    assert (found.text, found.phase) == ("KeyError: 'layers'", "while it loaded the model")
