"""Parts of `run-batch`: rejected and repaired files, pauses before retries, and its own server."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from envs.registry import env
from startup.words.errors import InputError
from tests.vllm_cli.batch.conftest import request_line, write_lines
from vllm_cli.batch import results
from vllm_cli.batch.requests import LinePlace, open_input
from vllm_cli.batch.results import BEGINNING, OutputFile, answered
from vllm_cli.batch.run_batch import default_flags
from vllm_cli.batch.sender import pause_s
from vllm_cli.main import main


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is not a JSON object"),
        ('{"method": "POST"}', "line 1 has no 'custom_id'"),
        ('\n{"custom_id": 1}', "line 2 has 1 as 'custom_id', which must be a text"),
        ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": []}', "which must be an object"),
        (f"{json.dumps(request_line(1))}\n" * 2, "line 2 has the custom_id of line 1, 'request-1'"),
        ("x\n" * 12, "and 2 more"),
    ],
    ids=["JSON", "object", "missing", "type", "body", "twice", "many"],
)
def test_an_invalid_input_file_is_rejected_before_any_request(text, message, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(text)
    words = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--url", "http://127.0.0.1:1"]
    assert main(["run-batch", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--url", "http://localhost", "--max-model-len", "8k"], "with --url, run-batch starts no server"),
        (["--port", "9000"], "--port: the server of run-batch has a private socket"),
        (["--api-key", "x"], "--api-key requires --url"),
        (["--url", "ftp://x"], "'ftp://x' is not an address"),
        (["-i", "missing.jsonl", "--url", "http://localhost"], "missing.jsonl cannot be read: No such file"),
        (["-o", "missing/out.jsonl", "--url", "http://localhost"], "out.jsonl cannot be written: No such file"),
        (["-o", "/dev/null", "--url", "http://localhost"], "'/dev/null' must be a file"),
        (["-o", "-", "--url", "http://localhost"], "'-' must be a file"),
        (["--url", "unix:"], "'unix:' names no socket"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(words, message, tmp_path, capsys):
    given = {"-i": str(write_lines(tmp_path / "in.jsonl", [request_line(0)])), "-o": str(tmp_path / "out.jsonl")}
    missing = [word for name in given if name not in words for word in (name, given[name])]
    assert main(["run-batch", *missing, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a note\n", '{"id": "other"}\n', "x", f"{BEGINNING.decode()}\n{BEGINNING.decode()}"])
def test_an_output_file_with_other_content_is_rejected_and_unchanged(text, tmp_path):
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(InputError, match="is not a result of a batch"):
        OutputFile(path)
    assert path.read_text() == text


def test_an_output_file_of_other_requests_is_rejected(tmp_path):
    with open_input(str(write_lines(tmp_path / "in.jsonl", [request_line(0)]))) as batch:
        [place] = batch.places
    with OutputFile(tmp_path / "out.jsonl") as output:
        output.append(answered(place, 200, b"{}"))
        output.check_same_batch({place.custom_id: place.id})
        with pytest.raises(InputError, match="1 requests that are not in the input: request-0"):
            output.check_same_batch({})
        with pytest.raises(InputError, match="1 requests that have changed since: request-0"):
            output.check_same_batch({place.custom_id: "vllm-other"})


def test_a_run_that_waited_for_a_sorted_file_opens_the_new_one(tmp_path, monkeypatch):
    """The first run sorts the file and ends between the second run's `open` and its lock."""
    path = tmp_path / "out.jsonl"
    lock = results.fcntl.flock

    def replace_first(*arguments: Any) -> None:
        monkeypatch.setattr(results.fcntl, "flock", lock)
        (tmp_path / "sorted").write_bytes(answered(LinePlace("a", "vllm-a", 0, 0), 200, b"{}").line)
        (tmp_path / "sorted").replace(path)
        lock(*arguments)

    monkeypatch.setattr(results.fcntl, "flock", replace_first)
    with OutputFile(path) as output:
        assert list(output.recorded) == ["a"]
        with pytest.raises(InputError, match="is being written by another run"):
            OutputFile(path, is_overwriting=True)
    assert path.read_bytes()


def test_an_incomplete_last_line_is_removed_wherever_it_ends(tmp_path):
    path = tmp_path / "out.jsonl"
    lines = [answered(LinePlace(name, f"vllm-{name}", 0, 0), 200, b'{"a": "\xc3\xa9"}').line for name in ("one", "two")]
    whole = b"".join(lines)
    for length in range(len(lines[0]) + 1, len(whole)):
        path.write_bytes(whole[:length])
        with OutputFile(path) as output:
            assert list(output.recorded) == ["one"]
        assert path.read_bytes() == lines[0]


@pytest.mark.parametrize(
    ("status", "content", "is_failed", "expected"),
    [
        (200, b'{\n "a": 1\n}', False, {"a": 1}),
        (200, b"[1]", True, None),
        (200, b"<html>", True, None),
        (301, b"", True, None),
        (500, b"oh\nno", True, None),
    ],
)
def test_every_answer_becomes_one_line(status, content, is_failed, expected):
    result = answered(LinePlace("a\n\u2028\ud800", "vllm-1", 0, 0), status, content)
    assert result.line.count(b"\n") == 1
    assert result.recorded.is_failed == is_failed
    fields = json.loads(result.line)
    assert fields["custom_id"] == "a\n\u2028\ud800"
    assert fields["response"]["body"] == expected
    assert bool(fields["error"]) == is_failed


@pytest.mark.parametrize(
    ("retry_after", "expected_s"),
    [
        ("0", 0.05),
        (" 7 ", 7),
        ("99999", 600),
        pytest.param(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0.05, id="yesterday"),
    ],
)
def test_the_pause_follows_retry_after_within_limits(retry_after, expected_s):
    assert pause_s(5, retry_after) == pytest.approx(expected_s)


@pytest.mark.parametrize("retry_after", [None, "", "soon", "-1", "1.5", "nan"])
def test_without_retry_after_pauses_grow_up_to_30_seconds(retry_after):
    assert 0.25 <= pause_s(0, retry_after) <= 0.5
    assert 1 <= pause_s(2, retry_after) <= 2
    assert 15 <= pause_s(5000, retry_after) <= 30


def test_retry_after_may_be_a_date():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=500), usegmt=True)
    assert 0 < pause_s(0, later) <= 500


@pytest.mark.parametrize(
    ("words", "variable", "is_quiet"),
    [
        (("--model", "m"), None, True),
        (("--engine", "embedded"), "vllm", True),
        ((), "vllm", False),
        (("--engine=vllm",), None, False),
        (("--engine", "auto"), None, False),
    ],
)
def test_flags_of_the_embedded_engine_are_not_passed_to_another_engine(words, variable, is_quiet):
    with env.VCLI_ENGINE.override(variable):
        flags = default_flags(words)
    assert bool(flags) == is_quiet
    assert ("embedded" in flags) == is_quiet
