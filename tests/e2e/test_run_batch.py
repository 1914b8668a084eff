"""`vllm-cli run-batch` with the server that it starts, also if the command is killed."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.cli import CLI, run_cli
from tests.support.waiting import is_gone, wait_until

_NUM_SHORT, _NUM_LONG = 4, 8


@pytest.mark.timeout(900)
def test_a_killed_batch_leaves_no_process_and_keeps_its_answers(model_path, tmp_path):
    """The continuation by a second run is tested in `tests/vllm_cli/batch`."""
    batch, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    _write(batch, [_request(n, max_tokens=4 if n < _NUM_SHORT else 400) for n in range(_NUM_SHORT + _NUM_LONG)])
    command = ["run-batch", "-i", str(batch), "-o", str(out)]
    # A list flag takes every word up to the next flag: the order of the user's words is kept.
    command += ["--max-num-seqs", "2", "--model", str(model_path), "--served-model-name", "smol", "other"]
    command += ["--max-model-len", "512", "--max-concurrency", "2"]

    process = subprocess.Popen([*CLI, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: process.poll() is not None or _num_lines(out) >= _NUM_SHORT, timeout_s=240)
        assert process.poll() is None, process.stderr and process.stderr.read()
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
    assert len(family) >= 3  # supervisor, API process, engine
    wait_until(lambda: all(is_gone(member.pid) for member in family))
    kept = out.read_bytes()[: out.read_bytes().rfind(b"\n") + 1].splitlines()
    assert _NUM_SHORT <= len(kept) < _NUM_SHORT + _NUM_LONG
    answers = {answer["custom_id"]: answer["response"]["body"] for answer in map(json.loads, kept)}
    assert answers.keys() >= {f"request-{n}" for n in range(_NUM_SHORT)}
    assert all(body["choices"][0]["message"]["content"] for body in answers.values())


def test_a_failed_start_shows_the_servers_error_and_exit_code(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(_request(0)))
    command = ("run-batch", "-i", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", "--model", tmp_path / "no-model")
    done = run_cli(*command)
    assert done.returncode == 3
    assert f"{tmp_path}/no-model is neither a folder nor a name" in done.stderr
    wrong = run_cli(*command, "--max-num-seqs", "many")
    assert wrong.returncode == 2
    assert "--max-num-seqs" in wrong.stderr


def test_its_server_needs_no_key_and_no_tls_whatever_flags_and_file_say(tiny_llama, tmp_path):
    keys, config, batch = (tmp_path / name for name in ("keys", "config.yaml", "in.jsonl"))
    keys.write_text("sesame-1\n")
    tls = "ssl-certfile: /missing.pem\nssl-ca-certs: /missing.pem\nssl-cert-reqs: 2\n"
    config.write_text(f"api-key: [sesame-2]\napi-key-file: {keys}\nserved-model-name: smol\n{tls}")
    body = {"model": "smol", "prompt": "a", "max_tokens": 1}
    batch.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}))
    words = ("--model", tiny_llama, "--config", config, "--ssl_keyfile", "/missing.pem", "--fail-on-error")
    done = run_cli("run-batch", "-i", batch, "-o", tmp_path / "out.jsonl", *words)
    assert done.returncode == 0, done.stderr
    assert "Notice" not in done.stderr


def _request(number: int, *, max_tokens: int = 4) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Tell me a fact about the number {number}."}]
    body = {"model": "smol", "messages": messages, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    return {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def _write(path: Path, requests: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(request)}\n" for request in requests))


def _num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
