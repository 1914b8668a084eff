"""Without the addition `explain`, the last exception is reported, and what a start must know of a failure."""

import json
from pathlib import Path

import pytest

from envs.registry import env
from startup.reports.crash import crash_report, last_exception
from startup.reports.crash.last_exception import LastException, describe_message, find_cause
from startup.reports.crash.output_record import OutputRecord

_CORE = "(EngineCore pid=40) ERROR 09-03 11:03:37 [core.py:712] "
_OURS = f"{Path(__file__).parents[4]}/startup/vllm/journal.py"
_TRACE = """\
Traceback (most recent call last):
  File "/x/site-packages/vllm/core.py", line 9, in load_model
    raise ValueError("no weights")
ValueError: no weights
"""


def _found(text: str) -> LastException | None:
    return find_cause(text.splitlines())


@pytest.mark.parametrize(
    ("text", "process", "phase", "shown", "line"),
    [
        (_TRACE, "", "while it loaded the model", "ValueError: no weights", 4),
        ("".join(f"{_CORE}{line}\n" for line in _TRACE.splitlines()), "EngineCore pid=40", "", "no weights", 4),
        (f"{_TRACE}RuntimeError: Engine core initialization failed\n", "", "", "RuntimeError: Engine core", 5),
        ("  Traceback (most recent call last):\n  vllm.x.OwnError: no\n", "", "", "vllm.x.OwnError: no", 2),
        ("(W pid=7) FatalSignal: crashed with SIGSEGV\n", "W pid=7", "", "FatalSignal: crashed with SIGSEGV", 1),
        ("(W pid=7) ERROR 09-03 11:03:37 [process_ends.py:1] killed by SIGKILL\n", "W pid=7", "", "killed by", 1),
        ("KeyError\n", "", "", "KeyError", 1),
    ],
    ids=["printed", "logged", "last", "indented", "signal", "end", "without a message"],
)
def test_the_last_exception_is_the_cause(text, process, phase, shown, line):
    found = _found(f"{text}shutting down\n")
    assert found is not None
    assert (found.process, found.line, found.is_stop, found.is_explained) == (process, line, False, False)
    assert found.phase == phase or not phase
    assert shown in found.text


@pytest.mark.parametrize(
    "text", ["", "loading\n", "    raise ValueError('x')\n", f"{_CORE}a request failed\n", "    except OSError:\n"]
)
def test_other_lines_are_no_failure(text):
    assert _found(text) is None


@pytest.mark.parametrize(
    "line", ["(EngineCore pid=5) INFO 01-01 00:00:00 [core.py:9] trigger received signal=SIGTERM", "KeyboardInterrupt"]
)
def test_a_signal_is_the_cause_only_if_nothing_has_failed_before(line):
    stopped, failed = _found(f"{line}\n{_TRACE}"), _found(f"{_TRACE}{line}\n")
    assert stopped is not None and stopped.is_stop
    assert failed is not None and not failed.is_stop


@pytest.mark.parametrize(
    ("frames", "error", "signs"),
    [
        ([("/x/vllm/core.py", "run"), (_OURS, "span")], "KeyError: 'x'", {"is_own_fault"}),
        ([(_OURS, "span"), ("<string>", "phase")], "KeyError: 'x'", {"is_own_fault"}),
        ([(_OURS, "span"), ("/x/vllm/core.py", "run")], "KeyError: 'x'", set()),
        ([(_OURS, "span")], "startup.errors.StartupError: no", set()),
        ([("/x/site-packages/triton/a.py", "<module>")], "ImportError: x", {"is_of_library_import"}),
        ([], "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA", {"is_forked_driver"}),
    ],
    ids=["our code", "code without a file", "code of vLLM", "intended", "import", "fork"],
)
def test_the_start_is_told_whether_plain_vllm_could_start(frames, error, signs):
    """Also if later exceptions only report this one."""
    lines = [f'  File "{file}", line 7, in {function}' for file, function in frames]
    found = find_cause(["Traceback (most recent call last):", *lines, error, "RuntimeError: Engine core failed"])
    assert {
        name for name in ("is_own_fault", "is_forked_driver", "is_of_library_import") if getattr(found, name)
    } == signs


def test_the_states_of_a_progress_bar_are_one_line():
    found = find_cause(["shards:  0%\r", "shards: 50%\r", "shards: 100%", "ValueError: no weights"])
    assert found is not None and found.line == 2


def test_the_digest_says_what_is_missing_and_hides_secrets():
    cause = describe_message("APIServer pid=5", "OSError: \x1b[31m HF_TOKEN=hf_abc", has_advice=False)
    first, second, third, code = cause.completed("while it served", is_embedded=False).lines()
    assert first == "APIServer (pid 5) failed while it served."
    assert second == "Cause: OSError: \\x1b[31m HF_TOKEN=********"
    assert third == "Do: Read the log: this installation has no explain, which knows causes and remedies."
    assert code == "Code: VC-UNKNOWN"
    members = json.loads(json.dumps(cause.to_dict()))
    assert (members["process"], members["code"], members["cause"]) == ("APIServer pid=5", "VC-UNKNOWN", None)


@pytest.mark.parametrize(
    ("output", "shown"),
    [(_TRACE, "ValueError: no weights"), ("loading\n", "the engine died"), ("Received SIGTERM\n", "the engine died")],
    ids=["exception", "no exception", "stopped"],
)
def test_a_crash_is_reported_as_with_known_causes(output, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(crash_report, "explainer", lambda: last_exception)
    monkeypatch.setenv(env.VLLM_CACHE_ROOT.name, str(tmp_path / "cache"))
    record = OutputRecord(tmp_path)
    record.append(output)
    cause = crash_report.describe_crash(record, "engine", "during the start", "the engine died", is_embedded=True)
    err = crash_report.build_error(cause, record, exit_code=3, log_format="json")
    assert (err.exit_code, err.cause) == (3, "unknown")
    _, second, *_, log = str(err).splitlines()
    assert second == f"Cause: {shown}"
    assert log.startswith("Log: ")
    assert json.loads(err.json_line or "")["digest"]["text"] == shown
