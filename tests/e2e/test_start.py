"""Starts answer probes, report their phases, download models, log and show metrics. Nothing is left."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from base.status_page.page import DATA_PATH
from envs.registry import START_METHODS
from tests.e2e.server_process import ServerProcess, count_roles
from tests.e2e.stop_point import API_READS_TOKENIZER, StopPoint
from tests.startup.port.notify_socket import NotifySocket
from tests.startup.vllm.fake_start import FAKE, ROOT, FakeStart, environment
from tests.support.cli import run_cli
from tests.support.folders import short_folder
from tests.support.http_client import RepeatingClients, ask
from tests.support.hub import HubServer
from tests.support.program import READY_S
from tests.support.standby_process import StandbyProcess
from tests.support.waiting import GONE_S, wait_until

_PROCESSES_OF_METHOD = {"spawn": ["resource_tracker"], "fork": [], "forkserver": ["forkserver", "resource_tracker"]}
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


def test_no_probe_is_refused_from_the_first_answer_to_readiness(start_server):
    with start_server(wait=False) as server, RepeatingClients(server.port, *["/health"] * 4) as clients:
        server.wait_ready()
        clients.wait_for_more(20, 200)
    assert not clients.lost
    phases = set()
    for statuses, bodies in zip(clients.statuses, clients.bodies, strict=True):
        assert statuses == sorted(statuses, key=(0, 503, 200).index)
        states = [json.loads(body) for body in bodies]
        assert {state["status"] for state in states} <= {"starting"}
        elapsed = [state["elapsed_s"] for state in states]
        assert elapsed == sorted(elapsed)
        phases |= {state["phase"] for state in states}
    assert len(phases) >= 3


def test_with_listen_when_ready_the_first_connection_finds_a_ready_server(start_tiny_server, cold_or_warm):
    environment = cold_or_warm | {"VCLI_LISTEN_WHEN_READY": "1"}
    with start_tiny_server(wait=False, environment=environment) as server:
        with RepeatingClients(server.port, "/health") as clients:
            server.wait_ready()
            clients.wait_for_more(5, 200)
        assert not clients.lost
        assert clients.statuses[0] == sorted(clients.statuses[0], key=(0, 200).index)
        assert server.complete(max_tokens=1) == 200
        assert server.terminate() == 0


def test_with_listen_when_ready_a_port_that_another_server_takes_first_ends_the_start(start_tiny_server, tmp_path):
    bound = StopPoint(tmp_path, *API_READS_TOKENIZER)
    start = start_tiny_server("--listen-when-ready", wait=False, environment=bound.environment)
    with start as server, socket.socket() as other:
        api = bound.wait_stopped()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", server.port))
        other.listen()
        api.resume()
        assert server.process.wait(READY_S) == 3
        assert f"cannot listen on 127.0.0.1:{server.port}: Address already in use" in server.log


def test_the_report_has_the_phases_of_all_processes(start_server, tmp_path):
    report = tmp_path / "report.json"
    with start_server("--startup-report", str(report)) as server:
        answered = ask(f"{server.url}/startupz").json
    written = json.loads(report.read_text())
    assert answered["outcome"] == written["outcome"] == "ready"
    phases = {f"{each['process']}:{each['name']}": each for each in written["phases"]}
    assert {"api:first_token", "engine:load_weights", "forkserver:preload_imports"} <= phases.keys()
    assert all(0 <= each["begin_s"] <= each["begin_s"] + each["took_s"] for each in phases.values())
    assert "api:wait_for_engine" not in phases, "it only waits"
    assert max(span["end_s"] for span in written["spans"]) == pytest.approx(written["total_s"], rel=0.01)


def test_start_that_exceeds_its_timeout_ends_with_its_phase_and_stacks(start_tiny_server):
    with start_tiny_server("--startup-timeout", "0.6", wait=False) as server:
        server.family()
        assert server.process.wait(GONE_S) == 3
        assert "--startup-timeout 0.6 s, in phase" in server.log
        assert "Thread 0x" in server.log


@pytest.mark.smoke
def test_preflight_reports_all_faults_at_once_before_heavy_imports(tmp_path, model_path):
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
        arguments = ("serve", model, "--host", "127.0.0.1", "--port", port)
        run = run_cli(*arguments, environment=_audit_environment(tmp_path, "all"))
    assert run.returncode == 3
    assert all(argument in run.stderr for argument in (port, "model.safetensors", "tokenizer.json"))
    assert not (tmp_path / "audit").exists(), (tmp_path / "audit").read_text()


@pytest.mark.parametrize("method", START_METHODS)
def test_each_start_method_serves_exits_cleanly_and_imports_heavy_modules_on_main_threads(tiny_llama, tmp_path, method):
    """With `forkserver`, only the engine's processes load torch. It would delay the API process by 1.5 s."""
    environment = _audit_environment(tmp_path, "others") | {"VLLM_WORKER_MULTIPROC_METHOD": method}
    with ServerProcess([str(tiny_llama), "--prefetch", "on"], environment=environment) as server:
        has_torch = "libtorch" in Path(f"/proc/{server.process.pid}/maps").read_text()
        assert server.complete(max_tokens=4) == 200
        roles = count_roles(server)
        assert server.terminate() == 0
    del roles["prefetch"], roles["responder"]  # they may have ended
    assert roles == Counter(["api", "engine", *_PROCESSES_OF_METHOD[method]])
    assert not (has_torch and method == "forkserver")
    audit = tmp_path / "audit"
    assert not audit.exists(), audit.read_text()


def _audit_environment(folder: Path, threads: str) -> dict[str, str]:
    """Every Python process records its heavy imports, on all threads or on all except the main thread."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(_AUDIT)
    return {"PYTHONPATH": str(site), "IMPORT_AUDIT": str(folder / "audit"), "AUDITED_THREADS": threads}


PROMPT = "Foxes, hens and 3 other animals lived by the river. " * 5
FLAGS = ("--log-format", "json", "--enable-log-requests", "--disable-access-log-for-endpoints", "/health, /metrics")


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[ServerProcess]:
    """A server that logs JSON, and its statistics five times a second."""
    arguments = [str(model_path), "--served-model-name", "smol", "--max-model-len", "1024", *FLAGS]
    with ServerProcess(arguments, environment={"VLLM_LOG_STATS_INTERVAL": "0.2"}) as server:
        yield server


def records(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log[: log.rfind("\n") + 1].splitlines()]


def complete(server: ServerProcess, **options: Any) -> Any:
    with server.openai() as client:
        return client.completions.create(model="smol", prompt=PROMPT, seed=1, **options)


def samples(server: ServerProcess) -> Counter[str]:
    """Name and source of each metric of the model -> its value."""
    families = text_string_to_metric_families(server.ask("/metrics").body.decode())
    found = [s for family in families for s in family.samples if s.labels.get("model_name") == "smol"]
    return Counter({f"{s.name} {s.labels.get('source', '')}".strip(): s.value for s in found})


def test_every_log_line_is_json_with_the_process_s_role(server):
    server.wait_logged("ready after")
    lines = records(server.log)
    assert all({"time", "level", "logger", "message", "phase", "pid", "role"} <= line.keys() for line in lines)
    assert {line["role"] for line in lines} <= {"api", "engine", "forkserver", "responder"}
    (ready,) = [line for line in lines if line["message"].startswith("ready after")]
    assert (ready["role"], ready["pid"], ready["phase"]) == ("api", server.process.pid, "serving")
    assert ready["time"].endswith("Z")


def test_metrics_count_what_the_engine_has_computed(server):
    """`server/http/test_http_metrics.py` has all metrics of a request, with a scripted engine."""
    before = samples(server)
    usage = complete(server, n=2, max_tokens=7, extra_body={"ignore_eos": True, "cache_salt": "mine"}).usage
    assert (usage.completion_tokens, usage.prompt_tokens > 3) == (14, True)
    increase = samples(server)
    increase.subtract(before)
    prompt = 2 * usage.prompt_tokens
    shared = (usage.prompt_tokens - 1) // 16 * 16  # whole blocks, of the first choice's prompt
    expected = {
        "prompt_tokens_total": prompt,
        "generation_tokens_total": 14,
        "prompt_tokens_by_source_total local_compute": prompt - shared,
        "prompt_tokens_by_source_total local_cache_hit": shared,
        "prefix_cache_hits_total": shared,
        "prompt_tokens_cached_total": shared,
        "prefix_cache_queries_total": prompt,
        "request_prefill_kv_computed_tokens_sum": prompt - shared,
        "iteration_tokens_total_sum": prompt - shared + 12,  # no sequence computes its last token
        "num_preemptions_total": 0,
    }
    assert {name: increase[f"vllm:{name}"] for name in expected} == expected


def test_a_missing_model_is_an_error_in_json(tmp_path):
    run = run_cli("serve", tmp_path / "no", "--port", "0", "--log-format", "json")
    assert run.returncode == 3
    last = records(run.stderr)[-1]
    assert last["level"] == "ERROR"
    assert str(tmp_path / "no") in last["message"]
    assert last["code"] == "VC-MODEL-NOT-FOUND"


@pytest.fixture
def hub(tiny_llama: Path) -> Iterator[HubServer]:
    with HubServer().serving() as hub:
        hub.add("org/model", tiny_llama)
        yield hub


def settings(hub: HubServer, folder: Path) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}
    return {**offline, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub")}


def test_an_empty_cache_gives_a_first_token_and_the_next_start_sends_one_request(hub, tmp_path):
    hub.link.bytes_per_s = 5_000
    with short_folder() as folder, NotifySocket(str(folder / "notify")) as notified:
        environment = settings(hub, tmp_path) | {"NOTIFY_SOCKET": notified.address}
        with ServerProcess(["org/model"], environment=environment, wait=False) as server:
            wait_until(lambda: " of " in (ask(f"{server.url}/readyz").json or {}).get("detail", ""))
            detail = ask(f"{server.url}/health").json["detail"]
            assert detail.startswith("downloading ")
            assert "/s" in detail
            assert ask(f"{server.url}{DATA_PATH}").json["progress"]["detail"].startswith("downloading ")
            wait_until(lambda: any("STATUS=" in line and ": downloading " in line for line in notified.lines))
            hub.link.bytes_per_s = None
            server.wait_ready()
            assert server.complete(max_tokens=1) == 200
            assert "downloaded " in server.log
            assert "detail" not in ask(f"{server.url}/health").body.decode()
    hub.reset()
    with ServerProcess(["org/model"], environment=settings(hub, tmp_path)) as server:
        assert server.complete(max_tokens=1) == 200
    assert [seen.path for seen in hub.requests] == ["/api/models/org/model/revision/main"]


def test_a_warm_start_serves_the_mended_template_after_the_next_one(hub, tiny_llama, tmp_path):
    """The start does not wait for the hub. Once it is ready, it checks the hub and downloads the template."""
    ref = tmp_path / "hub" / "models--org--model" / "refs" / "main"
    files = {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    chat = {"model": "org/model", "messages": [{"role": "user", "content": "a"}]}
    counts = []
    with StandbyProcess(environment=settings(hub, tmp_path)) as standby:
        for text in ("a", "a a a", "a a a"):
            commit = hub.add("org/model", files | {"chat_template.jinja": text.encode()}).id
            with ServerProcess(["org/model"], environment=settings(hub, tmp_path) | standby.environment) as server:
                counts.append(server.ask("/tokenize", chat).json["count"])
                wait_until(lambda commit=commit: ref.read_text() == commit)
    assert counts[0] == counts[1] < counts[2]


_HOOK = """
import os, sys

def note(event, args):
    if event == "os.fork":
        learned = sys.modules.get("startup.imports.learned_imports")
        is_learning = learned is not None and learned._is_open
        function = sys._getframe(1).f_code.co_name
        with open({path!r}, "a") as file:
            print(function, len(os.listdir("/proc/self/task")), int(is_learning), file=file)

sys.addaudithook(note)
"""
"""With this code, every Python process records its forks: function, number of threads, whether it learns."""


def _hook(folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(_HOOK.format(path=str(folder / "forks")))


def _assert_clean(folder: Path, *expected: str) -> None:
    """Checks that these functions forked with one thread, and that no fork was during learned imports."""
    forks = [line.split() for line in (folder / "forks").read_text().splitlines()]
    num_threads = {function: number for function, number, _ in forks if function in expected}
    assert num_threads == dict.fromkeys(expected, "1")
    assert {is_learning for _, _, is_learning in forks} == {"0"}


@pytest.mark.parametrize("method", ["forkserver", "fork"])
def test_responder_and_forkserver_are_forked_before_a_second_thread(tiny_llama, tmp_path, method):
    _hook(tmp_path)
    settings = {"PYTHONPATH": str(tmp_path), "VLLM_WORKER_MULTIPROC_METHOD": method, "VCLI_STANDBY": "off"}
    with ServerProcess([str(tiny_llama)], environment=settings) as server:
        assert server.complete(max_tokens=1) == 200
    _assert_clean(tmp_path, "start", *(["fork_dormant"] if method == "forkserver" else []))


def test_vllms_responder_is_forked_before_a_second_thread(tmp_path):
    _hook(tmp_path)
    with short_folder() as folder:
        settings = environment(folder, PYTHONPATH=f"{tmp_path}:{FAKE}:{ROOT}")
        with FakeStart(folder, "org/model", env=settings) as start:
            start.wait_ready()
    _assert_clean(tmp_path, "start")
