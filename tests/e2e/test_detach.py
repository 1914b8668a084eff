"""`serve --detach` returns once the server is ready, and names its log, or returns the start's exit code."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from base.machine.processes import child_pids
from startup.ground.run_record import read_run_records
from tests.startup.vllm.fake_start import environment, short_folder
from tests.support.certificates import make_certificate, needs_openssl
from tests.support.cli import run_cli
from tests.support.http_client import ask
from tests.support.ports import free_port
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import is_gone, wait_until
from vllm_cli.detached_start import _create_log

pytestmark = pytest.mark.thorough
KEY = "s3cret-of-the-test"


@pytest.fixture
def started():
    """A list for process ids of servers. Servers that still run at the end of the test are killed."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: is_gone(pid))


def _detach(started, *words, environment=None):
    """Runs `serve --detach`. Returns its output, and the server's entry in `ps --json`."""
    done = run_cli("serve", *words, "--detach", environment=environment)
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout.partition("(process ")[2].partition(")")[0])
    started.append(pid)
    (server,) = (each for each in json.loads(run_cli("ps", "--json").stdout) if each["pid"] == pid)
    assert done.stdout.endswith(f"Its log is {server['log']}\n")
    return done, server


@pytest.mark.smoke
def test_the_server_is_ready_and_ps_and_stop_know_it(tiny_llama, started):
    done, server = _detach(started, tiny_llama, "--engine", "embedded", "--port", "0", "--api-key", KEY)
    assert done.stdout.startswith(f"{tiny_llama} (process {server['pid']}) on {server['address']} is ready. Its log")
    assert (server["state"], ask(f"{server['address']}/health").status) == ("ready", 200)
    assert os.getsid(server["pid"]) == server["pid"]
    assert [str(Path(f"/proc/{server['pid']}/fd/{fd}").readlink()) for fd in (0, 1)] == [os.devnull, server["log"]]
    log = Path(server["log"])
    assert log.stat().st_mode & 0o777 == 0o600
    assert "ready after" in log.read_text()
    assert KEY not in log.read_text()
    assert KEY.encode() not in Path(f"/proc/{server['pid']}/cmdline").read_bytes()
    assert server["log"] in run_cli("ps").stdout
    assert run_cli("stop", server["pid"]).returncode == 0
    assert is_gone(server["pid"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("/missing-model", "--port", "0"), 3, "Error: MODEL /missing-model is neither a folder nor"),
        (("--port", "99999"), 2, "Error: --port must be between"),
        (("--preflight-only", "/missing-model"), 3, "is neither a folder nor"),
        (("--help=port",), 0, "--port"),
    ],
    ids=["fails", "usage", "preflight", "help"],
)
def test_a_start_that_fails_has_its_exit_code_and_its_last_lines(words, code, message):
    done = run_cli("serve", *words, "--engine", "embedded", "--detach")
    assert done.returncode == code
    assert message in done.stdout + done.stderr
    assert ("Error: the start ended with exit code 3. Its log is " in done.stderr) is ("0" in words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_during_the_wait_ends_the_start(number, tiny_llama, tmp_path):
    words = [sys.executable, "-m", "vllm_cli", "serve", str(tiny_llama), "--engine", "embedded", "--port", "0"]
    with subprocess.Popen([*words, "--detach"], stderr=subprocess.DEVNULL) as waiting:
        found: list[int] = []

        def has_begun() -> bool:
            found[:] = [pid for pid in child_pids(waiting.pid) if os.getsid(pid) == pid]
            return bool(found) and any(record.pid in found for record in read_run_records())

        wait_until(has_begun)
        waiting.send_signal(number)
        assert waiting.wait(120) == 128 + number
    wait_until(lambda: all(map(is_gone, found)))


def test_a_warm_start(tiny_llama, started):
    with StandbyProcess() as standby:
        words = (tiny_llama, "--engine", "embedded", "--port", "0")
        _, server = _detach(started, *words, environment=standby.environment)
        assert server["forked_pid"] is not None
        assert run_cli("stop", server["pid"]).returncode == 0


def test_vllm_and_a_plain_start_of_vllm(started):
    with short_folder() as folder:
        for changes in ({}, {"VCLI_PLAIN_VLLM": "1"}):
            words = ("--engine", "vllm", "--prefetch", "off", "--host", "127.0.0.1", "--port", free_port())
            _, server = _detach(started, *words, environment=environment(folder, **changes))
            assert (server["engine"], server["state"]) == ("vllm", "ready")
            assert run_cli("stop", server["pid"]).returncode == 0


def test_several_models_and_one_that_stops_when_idle(tiny_llama, tmp_path, started):
    other = tmp_path / "other"
    other.symlink_to(tiny_llama)
    for models in ((tiny_llama, other), (tiny_llama, "--idle-stop", "1h")):
        words = (*models, "--engine", "embedded", "--port", "0", "--idle-warm", "off")
        _, server = _detach(started, *words)
        assert server["engine"] == "router"
        assert ask(f"{server['address']}/health").status == 200
        assert run_cli("stop", server["pid"]).returncode == 0


_LIBRARY = """openssl_conf = all
[all]
ssl_conf = tls
[tls]
system_default = newest
[newest]
MaxProtocol = {}
"""


@needs_openssl
@pytest.mark.parametrize("newest", ["TLSv1.2", "TLSv1.3"])
def test_a_server_that_wants_certificates_of_clients_runs_with_an_unknown_readiness(
    newest, tiny_llama, tmp_path, started, monkeypatch
):
    made = make_certificate(tmp_path, "server")
    (library := tmp_path / "openssl.cnf").write_text(_LIBRARY.format(newest))
    monkeypatch.setenv("OPENSSL_CONF", str(library))
    tls = (*made.flags, "--ssl-ca-certs", made.certificate, "--ssl-cert-reqs", "2")
    done, server = _detach(started, tiny_llama, "--engine", "embedded", "--port", "0", *tls)
    assert "its readiness is not known: it wants a certificate of its clients" in done.stdout
    assert run_cli("stop", server["pid"]).returncode == 0


@pytest.mark.smoke
def test_old_logs_are_removed_but_none_that_is_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr("startup.ground.run_record._FOLDERS", (f"{tmp_path}/{{user}}",))
    used, log = _create_log()
    for index in range(25):
        used.with_name(f"serve-20990101-0000{index:02}-1.log").touch()
    with log:
        newest, other = _create_log()
        other.close()
    assert newest.exists()
    names = sorted(path.name for path in used.parent.glob("*.log"))
    assert names[:2] == [used.name, newest.name]
    assert len(names) == 20 + 1
    assert [name[-8:-6] for name in names if name.startswith("serve-2099")] == [f"{i:02}" for i in range(6, 25)]


def test_a_benchmark_or_batch_has_no_detached_server(tmp_path):
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x"}}\n')
    done = run_cli("run-batch", "-i", requests, "-o", tmp_path / "out", "--engine", "embedded", "--detach")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, "Error: --detach is for `vllm-cli serve` only: leave it out."
    )  # fmt: skip
