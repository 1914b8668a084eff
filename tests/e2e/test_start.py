"""Real starts: probes are answered, phases are reported, signals and time-outs leave no process."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from envs.registry import START_METHODS
from tests.e2e.process_tree import for_each_process
from tests.e2e.server_process import ServerProcess
from tests.ports import free_port
from tests.waiting import wait_listening, wait_until

_GONE_S = 60.0
_AUDIT = """
import os, sys, threading
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy"}
def hook(event, args):
    if event == "import" and args[0].partition(".")[0] in HEAVY:
        thread = threading.current_thread()
        if os.environ["AUDITED_THREADS"] == "all" or thread is not threading.main_thread():
            with open(os.environ["IMPORT_AUDIT"], "a") as file:
                file.write(f"{os.getpid()} {thread.name} {args[0]}\\n")
sys.addaudithook(hook)
"""


class _Prober(threading.Thread):
    """Polls /health every 2 ms; errors count from the first response on."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.statuses: list[int] = []
        self.failures: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self._url = f"http://127.0.0.1:{port}/health"
        self._is_stopping = threading.Event()

    def run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                with urllib.request.urlopen(self._url, timeout=60) as response:
                    self.statuses.append(response.status)
            except urllib.error.HTTPError as err:
                self.statuses.append(err.code)
                self.bodies.append(json.loads(err.read()))
            except OSError as err:
                if self.statuses:
                    self.failures.append(repr(err))
            time.sleep(0.002)

    def stop(self) -> None:
        self._is_stopping.set()
        self.join()


def test_no_probe_is_refused_from_the_first_answer_to_readiness(start_server: Any) -> None:
    with start_server(wait=False) as server:
        probers = [_Prober(server.port) for _ in range(4)]
        for prober in probers:
            prober.start()
        try:
            server.wait_ready()
            wait_until(lambda: all(prober.statuses.count(200) >= 5 for prober in probers))
        finally:
            for prober in probers:
                prober.stop()
    for prober in probers:
        assert not prober.failures
        ready = prober.statuses.index(200)
        assert set(prober.statuses[:ready]) <= {503}  # a prober delayed for the whole start has no 503
        assert set(prober.statuses[ready:]) == {200}
        assert {body["status"] for body in prober.bodies} <= {"starting"}
        elapsed = [body["elapsed_s"] for body in prober.bodies]
        assert elapsed == sorted(elapsed)
    assert len({body["phase"] for prober in probers for body in prober.bodies}) >= 3


@pytest.mark.thorough
def test_second_server_on_the_port_fails_while_the_first_still_loads(start_server: Any, model_path: Path) -> None:
    with start_server(wait=False) as first:
        wait_listening(first.port)
        second = subprocess.run(
            [
                sys.executable,
                "-m",
                "vllm_cli",
                "serve",
                str(model_path),
                "--host",
                "127.0.0.1",
                "--port",
                str(first.port),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert second.returncode == 3
        assert str(first.process.pid) in second.stderr
        first.wait_ready()


@pytest.mark.alone  # time without a processor between two phases belongs to no phase
def test_report_and_trace_explain_the_start(start_server: Any, tmp_path: Path) -> None:
    report, trace = tmp_path / "report.json", tmp_path / "trace.json"
    with (
        start_server("--startup-report", str(report), "--startup-trace", str(trace)) as server,
        urllib.request.urlopen(f"{server.url}/startupz") as response,
    ):
        answered = json.load(response)
        waited_s = sum(for_each_process(server, _seconds_without_processor))
    written = json.loads(report.read_text())
    assert answered["outcome"] == written["outcome"] == "ready"
    assert written["explained_share"] >= 0.99 - waited_s / written["total_s"]
    assert sum(p["took_s"] for p in written["phases"]) == pytest.approx(written["total_s"], rel=0.01)
    processes = {span["process"] for span in written["spans"]}
    assert {"api", "engine", "forkserver"} <= processes
    assert any(event["name"] == "load_weights" for event in json.loads(trace.read_text())["traceEvents"])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("signal_number", "delay_s"),
    [
        *((signal.SIGTERM, delay_s) for delay_s in (0.0, 0.4, 0.9, 1.5, 2.2)),
        *((signal.SIGINT, delay_s) for delay_s in (0.0, 1.2)),  # handled by the same code, except at the beginning
    ],
)
def test_signal_in_any_phase_ends_the_start_and_leaves_nothing(
    start_server: Any, signal_number: int, delay_s: float
) -> None:
    begin = time.monotonic()
    with start_server(wait=False) as server:
        wait_listening(server.port)  # earlier, the interpreter handles the signal
        time.sleep(delay_s + random.uniform(0, 0.2))
        family = server.family()
        server.process.send_signal(signal_number)
        signalled_after_s = time.monotonic() - begin
        server.process.wait(_GONE_S)
        _, left = psutil.wait_procs(family, timeout=_GONE_S)
        assert not left
        assert "Traceback" not in server.log
        # An early signal ends the start before the model is loaded; close to readiness either may come first.
        if ready := re.search(r"ready after (\d+\.\d+) s", server.log):
            assert signalled_after_s > float(ready[1]) / 2


def test_start_that_exceeds_its_timeout_ends_with_its_phase_and_stacks(start_server: Any) -> None:
    with start_server("--startup-timeout", "0.6", wait=False) as server:
        family = server.family()
        assert server.process.wait(_GONE_S) == 3
        _, left = psutil.wait_procs(family, timeout=_GONE_S)
        assert not left
        assert "--startup-timeout 0.6 s, in phase" in server.log
        assert "Thread 0x" in server.log


def test_preflight_reports_all_faults_at_once_before_heavy_imports(tmp_path: Path, model_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in model_path.iterdir():
        (model / file.name).symlink_to(file)
    weights = model / "model.safetensors"
    weights.unlink()
    weights.write_bytes((model_path / "model.safetensors").read_bytes()[:1_000_000])
    (model / "tokenizer.json").unlink()
    (model / "tokenizer.json").write_text("{")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "-m", "vllm_cli", "serve", str(model), "--host", "127.0.0.1", "--port", port],
            env=os.environ | _audit_environment(tmp_path, "all"),
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert run.returncode == 3
    assert all(word in run.stderr for word in (port, "model.safetensors", "tokenizer.json"))
    assert not (tmp_path / "audit").exists(), (tmp_path / "audit").read_text()


def test_misspelt_start_method_is_rejected_with_a_suggestion(model_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "vllm_cli", "serve", str(model_path)],
        env=os.environ | {"VLLM_WORKER_MULTIPROC_METHOD": "forkserve"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert "forkserver" in run.stderr
    assert "spawn" in run.stderr


@pytest.mark.smoke
def test_preflight_only_checks_and_exits(model_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "vllm_cli",
            "serve",
            str(model_path),
            "--preflight-only",
            "--json",
            "--port",
            str(free_port()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout
    assert json.loads(run.stdout)["ok"] is True


@pytest.mark.thorough
@pytest.mark.parametrize("method", START_METHODS)
def test_only_main_threads_import_heavy_modules(model_path: Path, tmp_path: Path, method: str) -> None:
    _start_audited(model_path, tmp_path, method)


@pytest.mark.slow
def test_only_main_threads_import_heavy_modules_in_fifty_starts(model_path: Path, tmp_path: Path) -> None:
    for _ in range(50):
        _start_audited(model_path, tmp_path, "forkserver")


@pytest.mark.thorough
def test_api_process_of_a_plain_start_imports_no_torch(model_path: Path, tmp_path: Path) -> None:
    """With `forkserver` only the engine's processes load torch, which would take 1.5 s of the API process."""
    with _audited(model_path, tmp_path, "forkserver") as server:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "libtorch" not in maps


def _start_audited(model_path: Path, folder: Path, method: str) -> None:
    with _audited(model_path, folder, method):
        pass
    audit = folder / "audit"
    assert not audit.exists(), audit.read_text()


def _audited(model_path: Path, folder: Path, method: str) -> ServerProcess:
    environment = _audit_environment(folder, "others") | {"VLLM_WORKER_MULTIPROC_METHOD": method}
    return ServerProcess([str(model_path), "--prefetch", "on"], environment=environment)


def _audit_environment(folder: Path, threads: str) -> dict[str, str]:
    """Every Python process records heavy imports in a file: on all threads, or on all but the main thread."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_AUDIT)
    return {"PYTHONPATH": str(site), "IMPORT_AUDIT": str(folder / "audit"), "AUDITED_THREADS": threads}


def _seconds_without_processor(process: psutil.Process) -> float:
    """How long its main thread was runnable without a processor; 0 if the kernel does not count that."""
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def test_starts_that_read_the_import_file_of_earlier_ones_serve(model_path: Path, tmp_path: Path) -> None:
    """The first start writes the file, the second one completes it, the third one only reads it."""
    environment = {"VLLM_CACHE_ROOT": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "", "VCLI_STANDBY": "off"}
    for _ in range(3):
        with ServerProcess([str(model_path)], environment=environment) as server:
            wait_until(lambda: any(tmp_path.rglob("*.code")))
            assert "Traceback" not in server.log
