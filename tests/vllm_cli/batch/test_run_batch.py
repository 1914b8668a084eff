"""`run-batch` with a running server: files, retries, and a second run."""

import json
import signal
import stat
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from tests.support.certificates import make_certificate, needs_openssl
from tests.support.waiting import wait_until
from tests.vllm_cli.batch.conftest import error, ok, read_lines, request_line, write_lines

pytestmark = pytest.mark.thorough


def test_answers_have_vllms_format_and_the_order_of_the_requests(server, run_batch, tmp_path):
    last_has_come = threading.Event()

    def decide(body: dict[str, Any]):
        """Answers the first request last."""
        if body["prompt"] == "request-0":
            assert last_has_come.wait(60)
        elif body["prompt"] == "request-4":
            last_has_come.set()
        return ok(body)

    server.decide_body = decide
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(5)])
    done = run_batch("--url", server.url, "--json")
    assert done.returncode == 0, done.stderr
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"request-{number}" for number in range(5)]
    for line in lines:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["id"].startswith("vllm-")
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert line["response"]["body"]["choices"] == [{"text": line["custom_id"]}]
    sent = {headers["X-Request-Id"] for _, _, headers, _ in server.requests}
    assert sent == {line["response"]["request_id"] for line in lines}
    summary = json.loads(done.stdout)
    assert (summary["status"], summary["succeeded"], summary["remaining"]) == ("completed", 5, 0)
    assert (summary["prompt_tokens"], summary["completion_tokens"]) == (10, 15)


def test_a_failed_request_has_an_error_in_its_line(server, run_batch, tmp_path):
    server.decide_body = lambda body: error(400, "too long") if body.get("prompt") == "request-1" else ok(body)
    lines = [
        request_line(0),
        request_line(1),
        request_line(2, url="/v1/audio/speech"),
        request_line(3, method="GET"),
        request_line(4, body={"prompt": "x", "stream": True}),
    ]
    write_lines(tmp_path / "in.jsonl", lines)
    done = run_batch("--url", f"{server.url}/v1/")
    assert done.returncode == 0, done.stderr
    assert "5 of 5 requests are done, 4 of them failed" in done.stderr
    answers = {line["custom_id"]: line for line in read_lines(tmp_path / "out.jsonl")}
    failed = answers["request-1"]
    assert failed["response"]["body"] is None
    assert failed["response"]["status_code"] == 400
    assert failed["error"]["error"]["message"] == "too long"
    assert answers["request-2"]["error"].startswith("URL /v1/audio/speech was used. Supported endpoints: /v1/chat/")
    assert "Only POST" in answers["request-3"]["error"]
    assert answers["request-4"]["error"] == "Request must not be sent in stream mode"
    assert server.paths == ["/v1/completions"] * 2


def test_fail_on_error_exits_with_5_for_failed_requests(server, run_batch, tmp_path):
    """Also for failed requests of an earlier run. By default, the code is 0 as in vLLM, for `set -e`."""
    server.decide_body = lambda body: error(400, "no") if body["prompt"] == "request-1" else ok(body)
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(2)])
    assert run_batch("--url", server.url, "--fail-on-error").returncode == 5
    assert run_batch("--url", server.url, "--fail-on-error").returncode == 5
    assert run_batch("--url", server.url).returncode == 0
    assert server.asked == {"request-0": 1, "request-1": 1}


def test_a_second_run_sends_the_requests_without_a_line(server, run_batch, tmp_path):
    server.decide_body = lambda body: error(400, "no") if body["prompt"] == "request-1" else ok(body)
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(3)])
    assert run_batch("--url", server.url).returncode == 0
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(4)])
    again = run_batch("--url", server.url, "--json")
    summary = json.loads(again.stdout)
    assert (summary["skipped"], summary["skipped_failed"]) == (3, 1)
    assert server.asked == {f"request-{number}": 1 for number in range(4)}
    server.decide_body = ok
    write_lines(tmp_path / "out.jsonl", [line for line in read_lines(tmp_path / "out.jsonl") if not line["error"]])
    assert run_batch("--url", server.url).returncode == 0
    assert server.asked == {"request-0": 1, "request-1": 2, "request-2": 1, "request-3": 1}
    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"request-{number}" for number in range(4)]
    assert not any(line["error"] for line in lines)


def test_kills_lose_no_result_and_repeat_none_in_the_file(server, start_batch, tmp_path):
    """Five runs are killed. Requests with a result in the file at that moment are never sent again."""
    num_requests, out = 120, tmp_path / "out.jsonl"
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(num_requests)])
    words = ("--url", server.url, "--max-concurrency", "4", "--retry-timeout", "0")
    allowed = threading.Semaphore(0)

    def decide(body: dict[str, Any]):
        allowed.acquire()
        return ok(body)

    server.decide_body = decide
    for kill in range(1, 6):
        process = start_batch(*words)
        allowed.release(20)
        wait_until(lambda least=kill * 10: out.exists() and out.read_bytes().count(b"\n") >= least)
        process.kill()
        process.communicate()
        torn = out.read_bytes() + b'{"id":"vllm-12'
        out.write_bytes(torn[:-kill])
        kept = {line["custom_id"] for line in map(json.loads, out.read_text().splitlines()[:-1])}
        server.asked.clear()
        allowed.release(num_requests)  # also answers the requests of the killed run
        wait_until(lambda: server.num_running == 0)
        server.asked.clear()
        while allowed.acquire(blocking=False):
            pass
    allowed.release(2 * num_requests)
    last = start_batch(*words)
    assert last.wait(200) == 0
    assert set(server.asked).isdisjoint(kept)
    assert [line["custom_id"] for line in read_lines(out)] == [f"request-{n}" for n in range(num_requests)]


@pytest.mark.parametrize("is_killed", [False, True])
def test_of_two_runs_at_once_one_writes_and_the_other_is_rejected(server, start_batch, tmp_path, is_killed):
    """The next run continues a killed run, although that run had locked the file."""
    num_requests, out = 40, tmp_path / "out.jsonl"
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(num_requests)])
    goes_on = threading.Event()
    server.decide_body = lambda body: ok(body) if body["prompt"] == "request-0" or goes_on.wait(60) else ok(body)
    runs = [start_batch("--url", server.url, "--max-concurrency", "2", "--retry-timeout", "0") for _ in range(2)]
    wait_until(lambda: any(run.poll() is not None for run in runs) and out.stat().st_size)
    (rejected,), (writing,) = ([run for run in runs if (run.poll() is None) == runs_on] for runs_on in (False, True))
    assert f"{out} is being written by another run" in rejected.communicate()[1]
    assert rejected.returncode == 2
    if is_killed:
        writing.kill()
        writing.communicate()
        goes_on.set()
        wait_until(lambda: server.num_running == 0)
        writing = start_batch("--url", server.url)
    goes_on.set()
    assert writing.wait(200) == 0
    assert [line["custom_id"] for line in read_lines(out)] == [f"request-{n}" for n in range(num_requests)]
    assert server.asked["request-0"] == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_keeps_its_results(server, start_batch, run_batch, tmp_path, number):
    blocks = threading.Event()
    server.decide_body = lambda body: ok(body) if body["prompt"] == "request-0" or blocks.wait(60) else ok(body)
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(4)])
    process = start_batch("--url", server.url, "--json")
    wait_until(lambda: (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl").stat().st_size)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    blocks.set()
    assert process.returncode == 128 + number
    assert json.loads(out)["status"] == "interrupted"
    assert "1 of 4 requests are done, 0 of them failed. Run the same command again to continue" in err
    assert run_batch("--url", server.url).returncode == 0
    assert server.asked["request-0"] == 1


def test_no_more_requests_than_allowed_are_in_flight(server, run_batch, tmp_path):
    are_three = threading.Event()

    def decide(body: dict[str, Any]):
        if server.num_running == 3:
            are_three.set()
        assert are_three.wait(60)
        return ok(body)

    server.decide_body = decide
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(20)])
    assert run_batch("--url", server.url, "--max-concurrency", "3").returncode == 0
    assert server.max_at_once == 3


def _in_a_moment() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


@pytest.mark.parametrize(
    ("status", "retry_after"), [(429, _in_a_moment), (503, lambda: None)], ids=["429 date", "503 unsaid"]
)
def test_a_request_is_retried_after_a_status_that_asks_to_wait(server, run_batch, tmp_path, status, retry_after):
    def decide(body: dict[str, Any]):
        if server.asked[body["prompt"]] > 2:
            return ok(body)
        value = retry_after()
        return error(status, "later", **({"Retry-After": value} if value else {}))

    server.decide_body = decide
    write_lines(tmp_path / "in.jsonl", [request_line(0)])
    done = run_batch("--url", server.url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["retries"] == 2
    assert server.asked == {"request-0": 3}


def test_a_request_fails_if_its_retries_time_out(server, run_batch, tmp_path):
    server.decide_body = lambda body: error(503, "never", **{"Retry-After": "3600"})
    write_lines(tmp_path / "in.jsonl", [request_line(0)])
    assert run_batch("--url", server.url, "--retry-timeout", "5").returncode == 0
    assert read_lines(tmp_path / "out.jsonl")[0]["response"]["status_code"] == 503


def test_a_request_answered_500_is_sent_three_times(server, run_batch, tmp_path):
    server.decide_body = lambda body: ok(body) if server.asked["request-1"] == 3 else error(500, "oh no")
    write_lines(tmp_path / "in.jsonl", [request_line(0), request_line(1)])
    assert run_batch("--url", server.url, "--max-concurrency", "1").returncode == 0
    assert server.asked == {"request-0": 3, "request-1": 3}
    assert [bool(line["error"]) for line in read_lines(tmp_path / "out.jsonl")] == [True, False]


def test_a_rejected_key_ends_the_run(server, run_batch, tmp_path):
    server.decide_body = lambda body: error(401, "who are you?")
    write_lines(tmp_path / "in.jsonl", [request_line(0)])
    done = run_batch("--url", server.url)
    assert done.returncode == 1
    assert "answers 401: give a valid --api-key" in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_without_a_server_nothing_is_written_and_the_exit_code_is_1(run_batch, tmp_path):
    write_lines(tmp_path / "in.jsonl", [request_line(0)])
    done = run_batch("--url", f"unix:{tmp_path}/no.sock")
    assert done.returncode == 1
    assert f"No server answers at unix:{tmp_path}/no.sock (no such file or directory)." in done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_a_full_disk_ends_the_run_and_keeps_whole_lines(server, start_batch, run_batch, tmp_path):
    """A limit on the file size simulates a full disk. A write that does not fit is truncated."""
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(60)])
    process = start_batch("--url", server.url, "--max-concurrency", "2", file_size=5000)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "out.jsonl cannot be written: File too large." in err
    assert 0 < len(read_lines(tmp_path / "out.jsonl")) < 60
    assert run_batch("--url", server.url).returncode == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 60


def test_the_model_and_the_key_are_sent(server, run_batch, tmp_path):
    asked: list[dict[str, Any]] = []
    server.decide_body = lambda body: asked.append(body) or ok(body)  # type: ignore[func-returns-value]
    write_lines(tmp_path / "in.jsonl", [request_line(0), request_line(1, body={"prompt": "x", "model": "own"})])
    assert run_batch("--url", server.url, "--model", "asked", "--api-key", "secret").returncode == 0
    assert sorted(body["model"] for body in asked) == ["asked", "own"]
    assert {headers["Authorization"] for _, _, headers, _ in server.requests} == {"Bearer secret"}


def test_files_may_be_on_a_web_server(server, run_batch, tmp_path):
    """The last --input-file counts. The folder has the results until the upload, or if the upload fails."""
    source = write_lines(tmp_path / "source.jsonl", [request_line(number) for number in range(3)])
    server.files["/in.jsonl"] = source.read_bytes()
    folder = tmp_path / "meanwhile"
    folder.mkdir()
    words = ("--url", server.url, "--input-file", f"{server.url}/in.jsonl", "--output-tmp-dir", str(folder))
    done = run_batch(*words, "--output-file", f"{server.url}/out.jsonl")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in server.files["/out.jsonl"].splitlines()]
    assert [line["custom_id"] for line in lines] == ["request-0", "request-1", "request-2"]
    assert list(folder.iterdir()) == []
    done = run_batch(*words, "--output-file", "http://127.0.0.1:1/out.jsonl")
    assert done.returncode == 1
    (answers,) = folder.glob("*/answers.jsonl")
    assert f"the results are in {answers}" in done.stderr


def test_the_mode_of_the_output_is_kept(server, run_batch, tmp_path):
    out = tmp_path / "out.jsonl"
    out.touch(0o600)
    out.chmod(0o600)
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in (0, 2)])
    assert run_batch("--url", server.url, "--max-concurrency", "1").returncode == 0
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in (2, 1, 0)])
    assert run_batch("--url", server.url).returncode == 0
    assert [line["custom_id"] for line in read_lines(out)] == ["request-2", "request-1", "request-0"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@needs_openssl
def test_requests_go_over_tls_if_the_certificate_is_trusted(server, run_batch, tmp_path, monkeypatch):
    made = make_certificate(tmp_path, "server")
    server.use_tls(made)
    write_lines(tmp_path / "in.jsonl", [request_line(number) for number in range(3)])
    stranger = run_batch("--url", server.url)
    assert stranger.returncode == 1
    assert "certificate verify failed" in stranger.stderr
    monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
    done = run_batch("--url", server.url, "--api-key", "secret")
    assert done.returncode == 0, done.stderr
    assert len(read_lines(tmp_path / "out.jsonl")) == 3
    assert {headers["Authorization"] for _, _, headers, _ in server.requests} == {"Bearer secret"}
