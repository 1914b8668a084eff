"""After a crash, there is a report with the last lines of each process's output."""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envs.registry import env
from startup.reports.crash import crash_report, output_record
from startup.reports.crash.crash_report import (
    build_error,
    describe_crash,
    find_crash,
    keep_log,
    name_log,
    write_termination_message,
)
from startup.reports.crash.explanation import explainer
from startup.reports.crash.output_record import OutputRecord, ProcessEnds
from tests.support.waiting import is_gone, wait_until
from vllm_cli.explain.explainer import ExplainedCause

_CAUSE = ExplainedCause("EngineCore pid=5", "while it loaded the model", "ValueError: no weights", None, 3)


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OutputRecord:
    monkeypatch.setenv(env.VLLM_CACHE_ROOT.name, str(tmp_path / "cache"))
    return OutputRecord(tmp_path)


def test_the_kept_log_has_no_secrets_and_no_control_characters(record, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["serve", "--api-key", "sk-0123456789"])
    record.append("key sk-0123456789 https://me:secret@host HF_TOKEN=hf_abc \x1b[31mred\n")
    path = keep_log(record)
    assert not any(text in path.read_text() for text in ("sk-0123456789", "secret", "hf_abc", "\x1b"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_lines_of_the_kept_log_have_the_numbers_of_the_digest(record):
    record.append("shards:  0%\rshards: 50%\rshards: 100%\n(EngineCore pid=5) ValueError: no weights\n")
    cause, path = find_crash(record), keep_log(record)
    assert path.read_text().splitlines()[cause.line - 1].endswith("ValueError: no weights")


def test_few_logs_of_bounded_size_are_kept(record, monkeypatch):
    monkeypatch.setattr(crash_report, "KEPT_BYTES", 100)
    record.append("first\n" + "x" * 1000 + "\nlast\n")
    path = keep_log(record)
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
    assert line["code"] == line["digest"]["code"] == "VC-UNKNOWN"
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
    assert cause is not None and cause.is_stop
    assert describe_crash(record, "API server", "", "no message").text == "no message"


def test_what_the_embedded_engine_reports_counts_without_an_exception(record):
    killed = describe_crash(record, "engine", "while it served", "its process 5 was killed by SIGSEGV")
    assert killed.name == "native-crash"
    record.append("ERROR 01-01 00:00:00 (engine) server.engine.engine_process: the engine failed\n")
    record.append(
        "  Traceback (most recent call last):\n    File \"x.py\", line 1, in load_model\n  KeyError: 'layers'\n"
    )
    found = describe_crash(record, "engine", "in phase wait_engine", "the engine failed")
    assert (found.text, found.to_dict()["phase"]) == ("KeyError: 'layers'", "loaded the model")


_TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1, in load_model\nValueError: no weights\n"
_FATAL = f"(EngineCore pid=1) ERROR EngineCore failed to start.\n{_TRACEBACK}"

_PID = 77
_STACK = """\
Phase: loading_cpu
Fatal Python error: Segmentation fault

Current thread 0x00007f0000000000 (most recent call first):
  File "/vllm/loader.py", line 9 in get_model
  File "/vllm/worker.py", line 5 in worker_main

Thread 0x00007f0000000001 (most recent call first):
  File "/lib/threading.py", line 1 in wait
"""


def test_once_the_server_is_ready_only_errors_are_recorded(record):
    record.add_output("loading\n")
    record.keeps_only_errors = True
    for text in ("GET /health 200\n", "ERROR: out of memory\n"):
        record.add_output(text)
    assert record.file.read_text() == "loading\nERROR: out of memory\n"
    assert record.file.stat().st_mode & 0o777 == 0o600


def test_an_exception_that_was_logged_is_not_shown_again(record, capsys):
    record.add_output(_FATAL)
    sys.stderr.write(record.describe_exception(ValueError("no weights"), "EngineCore"))
    assert (record.file.read_text(), capsys.readouterr().err) == (_FATAL, "")
    sys.stderr.write(record.describe_exception(ValueError("another"), "EngineCore"))
    shown = capsys.readouterr().err
    assert "Process EngineCore:" in shown
    assert shown.endswith(") ValueError: another\n")


def test_a_record_that_is_too_long_keeps_its_beginning_and_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(output_record, "_MOST_BYTES", 100_000)
    monkeypatch.setattr(output_record, "KEPT_BYTES", 1000)
    lines = [f"line {number:06}\n" for number in range(30_000)]
    writers = [OutputRecord(tmp_path) for _ in range(3)]  # as of three processes
    for number, line in enumerate(lines):
        assert writers[number % 3].append(line)
    kept = writers[0].file.read_text()
    first, *_, last = kept.split(output_record.LEFT_OUT)
    assert first == "".join(lines)[:1000].rpartition("\n")[0] + "\n"
    assert last == "".join(lines)[-len(last) :]
    assert 900 < len(last) < 100_000
    assert kept.count(output_record.LEFT_OUT) == 1


def test_a_full_disk_or_a_missing_folder_does_not_matter(tmp_path):
    record = OutputRecord(tmp_path / "missing")
    record.add_output("loading\n")
    assert record.read_state(1).name == ""


def test_handlers_that_hold_the_stream_write_to_the_record(tmp_path, monkeypatch):
    with (tmp_path / "shown").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handler = logging.StreamHandler(stream)
        record = OutputRecord(tmp_path)
        record.begin_process("test")
        record.begin_process("test")  # as in a fork: nothing is written twice
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "a line", (), None))
    assert record.file.read_text() == (tmp_path / "shown").read_text() == "a line\n"


_CHAIN = """\
(EngineCore pid=1) ERROR [core.py:9] EngineCore failed to start.
(EngineCore pid=1) ERROR [core.py:9] Traceback (most recent call last):
(EngineCore pid=1) ERROR [core.py:9]   File "/vllm/core.py", line 9, in run
(EngineCore pid=1) ERROR [core.py:9]     engine = EngineCore()
(EngineCore pid=1) ERROR [core.py:9]              ^^^^^^^^^^^^
(EngineCore pid=1) ERROR [core.py:9] KeyError: 'layers'
(EngineCore pid=1) ERROR [core.py:9]
(EngineCore pid=1) ERROR [core.py:9] The above exception was the direct cause of the following exception:
(EngineCore pid=1) ERROR [core.py:9]
(EngineCore pid=1) ERROR [core.py:9] Traceback (most recent call last):
(EngineCore pid=1) ERROR [core.py:9]   File "/vllm/core.py", line 7, in load
(EngineCore pid=1) ERROR [core.py:9] ValueError: 1 validation error
(EngineCore pid=1) ERROR [core.py:9]   Value error, no weights
(EngineCore pid=1) ERROR [core.py:9]     For further information
(EngineCore pid=1) ERROR [core.py:9]   see the manual
"""
_SHORT_CHAIN = """\
(EngineCore pid=1) ERROR [core.py:9] EngineCore failed to start.
(EngineCore pid=1) ERROR [core.py:9] ValueError: 1 validation error
(EngineCore pid=1) ERROR [core.py:9]   Value error, no weights
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (_CHAIN, _SHORT_CHAIN),
        (_TRACEBACK, "ValueError: no weights\n"),
        (f"Process x:\n{_TRACEBACK}", "ValueError: no weights\n"),
        (f"It failed.\n{_TRACEBACK}", "It failed.\nValueError: no weights\n"),
        ("Traceback (most recent call last):\n  File 'x.py'\nOwnError\n", "OwnError\n"),
        ("loading\n", "loading\n"),
    ],
    ids=["chain", "one", "of-a-process", "with-a-line", "without-a-message", "none"],
)
def test_a_terminal_gets_the_last_exception_of_a_traceback(tmp_path, text, shown):
    record = OutputRecord(tmp_path)
    assert record.add_output(text, lambda: True) == text
    record.shorten_tracebacks()
    assert record.add_output(text, lambda: False) == text
    assert record.add_output(text, lambda: True) == shown
    assert OutputRecord(tmp_path).add_output(text, lambda: True) == shown, "another process"
    assert record.file.read_text() == text * 4
    assert record.end_shortening() == ("Traceback" in text)
    assert record.add_output(text, lambda: True) == text
    assert not record.end_shortening()


def test_what_the_record_does_not_keep_is_shown(tmp_path):
    (tmp_path / "shortened").touch()
    record = OutputRecord(tmp_path)
    os.close(record._fd or -1)
    record._fd = os.open("/dev/full", os.O_WRONLY)
    assert record.add_output(_TRACEBACK, lambda: True) == _TRACEBACK


def test_a_log_that_no_digest_names_is_named_or_shown(record, tmp_path, monkeypatch, caplog, capsys):
    record.shorten_tracebacks()
    record.add_output(_FATAL, lambda: True)
    with caplog.at_level(logging.WARNING):
        name_log(record)
    (message,) = caplog.messages
    path = Path(message.removeprefix("tracebacks above are shortened. Complete log: "))
    assert path.read_text() == _FATAL
    assert not record.end_shortening(), "the log that is kept has them"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(env.VLLM_CACHE_ROOT.name, str(tmp_path / "file"))
    name_log(record)
    assert capsys.readouterr().err == _FATAL


def _describe(folder: Path, code: int, state: str = "", *, parent_pid: int = 0) -> str:
    (folder / f"{_PID}.state").write_text(f"VllmWorker-0\n{parent_pid}\n{state}")
    record = OutputRecord(folder)
    ProcessEnds(record).add(_PID, code)
    return record.file.read_text()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (-signal.SIGSEGV, "native-crash"),
        (-signal.SIGILL, "illegal-instruction"),
        (-signal.SIGKILL, "killed-from-outside"),
        (3, "process-vanished"),
    ],
)
def test_the_cause_is_found_in_the_lines(code, name, tmp_path):
    """The stack of the thread with the signal is a traceback."""
    text = _describe(tmp_path, code, _STACK)
    cause = explainer().find_cause(text.splitlines())
    assert (cause.process, cause.name) == (f"VllmWorker-0 pid={_PID}", name)
    assert cause.phase == "while it loaded the model"
    assert "threading" not in text
    assert code != -signal.SIGSEGV or text.index("in worker_main") < text.index("in get_model")


@pytest.mark.parametrize("code", [0, -signal.SIGTERM])
def test_a_process_that_was_asked_to_end_has_not_failed(code, tmp_path):
    assert explainer().find_cause(_describe(tmp_path, code).splitlines()) is None


def test_a_process_that_ended_with_its_parent_is_not_the_cause(tmp_path):
    child = subprocess.Popen(["true"])  # not reaped, so that its number is not used again
    wait_until(lambda: is_gone(child.pid))
    assert explainer().find_cause(_describe(tmp_path, -signal.SIGKILL, parent_pid=child.pid).splitlines()) is None
    assert explainer().find_cause(_describe(tmp_path, -signal.SIGKILL, parent_pid=os.getpid()).splitlines()) is not None
    child.wait()


def test_a_process_without_a_record_is_not_one_of_the_server(record):
    ProcessEnds(record).add(os.getpid(), 1)
    assert record.file.read_text() == ""


def test_a_full_disk_is_the_cause_of_what_its_record_lacks(record):
    record.append("ImportError: cannot import name 'a' from 'vllm'\n")
    record._fd = os.open("/dev/full", os.O_WRONLY)
    record.add_output("torch.distributed.DistStoreError: No space left on device\n")
    found = describe_crash(record, "API server", "in phase wait_engine", "the engine died")
    assert found.name == "disk-full"
    assert str(record.folder) in found.text
