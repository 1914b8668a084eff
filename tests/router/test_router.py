"""A router as a process: its end and its signals. `test_changed_models.py` changes its models file."""

import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from envs.registry import env
from tests.router.router_process import RouterProcess, embedded, foreign, wait_marked
from tests.startup.port.systemd.notify_socket import NotifySocket
from tests.support.http_client import ask
from tests.support.openai_client import StreamReader
from tests.support.processes import GONE_S, assert_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.thorough


def test_a_killed_router_leaves_no_process_and_no_folder_behind(tmp_path):
    with RouterProcess(tmp_path, {"a": foreign("has-children"), "b": foreign()}) as router:
        assert router.post("a").status == router.post("b").status == 200
        folder = Path(psutil.Process(router.pid("a")).environ()[env.VCLI_ROUTER.name]).parent
        family = wait_marked(f"{folder}/", 5)  # two servers, and three processes that the one has started
        router.terminate(signal.SIGKILL)
        assert_gone(family)
        wait_until(lambda: not folder.exists())


def test_sigterm_lets_running_requests_end_and_breaks_starts_off(tiny_llama, tmp_path):
    ours = embedded(tiny_llama, args=["--max-model-len", "4096"])
    may_answer = tmp_path / "may-answer"
    models = {"ours": ours, "a": foreign("waits", str(may_answer)), "b": foreign("never-listens")}
    with RouterProcess(tmp_path, models) as router:
        assert router.post("ours").status == 200
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(router.post, "b")
            wait_until(lambda: router.models()["b"]["pid"])
            starting = router.tree("b")
            running = pool.submit(router.post, "a")
            wait_until(lambda: router.models()["a"]["num_running"] == 1)
            stream = StreamReader(f"{router.url}/upstream/ours", 1000)
            router.process.send_signal(signal.SIGTERM)
            assert waiting.result().status == 503
            may_answer.touch()
            assert running.result().status == 200
            events = stream.finish()
        assert events[-1] is None, "the stream is complete"
        assert len(events) > 700
        assert router.process.wait(GONE_S) == 0
        assert_gone(starting)


def test_a_second_signal_ends_all_at_once(tmp_path):
    with RouterProcess(tmp_path, {"a": foreign("ignores-sigterm", "has-children")}) as router:
        assert router.post("a").status == 200
        family = router.tree("a")
        router.process.send_signal(signal.SIGTERM)
        router.wait_logged("stopping: ")
        wait_until(lambda: router.process.poll() is not None or router.process.send_signal(signal.SIGTERM))
        assert router.process.wait(GONE_S) == -signal.SIGTERM
        assert_gone(family)


def test_a_service_manager_is_told_of_the_start_and_the_end(tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, NotifySocket(f"{folder}/notify") as manager:
        environment = {env.NOTIFY_SOCKET.name: manager.address}
        models = {"a": foreign("has-children", preload=True), "b": foreign("dies", preload=True)}
        with RouterProcess(tmp_path, models, environment=environment) as router:
            wait_until(lambda: "READY=1" in manager.lines)
            (message,) = [each for each in manager.messages if not each.startswith("STATUS=")]
            assert message.startswith("READY=1\nSTATUS=ready: http://")
            assert (router.state("a"), router.state("b")) == ("ready", "failed")
            variables = ask(f"{router.url}/upstream/a/env").json["variables"]
            assert env.NOTIFY_SOCKET.name not in variables
            assert router.terminate() == 0
            wait_until(lambda: "STOPPING=1" in manager.lines)


def test_the_port_stays_open_for_the_drain_grace_also_without_a_process(tmp_path):
    with RouterProcess(tmp_path, {"a": foreign()}, "--drain-grace", "600") as router:
        assert router.post("a").status == 200
        family = router.tree("a")
        router.process.send_signal(signal.SIGTERM)
        assert_gone(family)
        assert (router.ask("/health").status, router.post("a").status) == (503, 503)
        assert router.process.poll() is None
        wait_until(lambda: "stopping at once" in router.log or router.process.send_signal(signal.SIGTERM))
        assert router.process.wait(GONE_S) == -signal.SIGTERM
