"""If a model's entry changes, a new process takes over while the old process answers its requests."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.router.router_process import RouterProcess, embedded, foreign
from tests.support.waiting import is_gone

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("number", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_no_request_fails_while_a_model_is_changed(tiny_llama, tmp_path, number):
    """docs/figures.md has the longest time of a request."""
    with RouterProcess(tmp_path, {"a": embedded(tiny_llama)}, "--standby", "off") as router:
        assert router.post("a").status == 200
        before = router.pid("a")

        def ask(_: int) -> tuple[int, float]:
            begin_s = time.monotonic()
            return router.post("a", timeout_s=600).status, time.monotonic() - begin_s

        with ThreadPoolExecutor(16) as pool:
            asked = []
            for index in range(number):
                if index == number // 10:
                    router.write({"a": {**embedded(tiny_llama), "args": ["--max-model-len", "128"]}})
                    router.process.send_signal(signal.SIGHUP)
                asked.append(pool.submit(ask, index))
                time.sleep(0.25)
            answers = [each.result() for each in asked]
        router.wait(lambda: router.pid("a") != before and is_gone(before))
        print(f"longest: {max(took_s for _, took_s in answers):.2f} s")
        assert {status for status, _ in answers} == {200}
        assert "has failed" not in router.log


def test_a_preloaded_model_is_started_again_when_it_is_changed_or_added(tmp_path):
    """The model starts without a request. An unchanged model that was unloaded by hand stays stopped."""
    same = foreign("same", preload=True)
    with RouterProcess(tmp_path, {"a": foreign("one", preload=True), "same": same, "off": foreign("off")}) as router:
        router.wait_state("a", "ready")
        router.wait_state("same", "ready")
        before = router.pid("a")
        assert router.ask("/models/unload", {"model": "same"}).json["status"] == "stopped"
        new = foreign("new", preload=True)
        router.write({"a": foreign("two", preload=True), "same": same, "off": foreign("off", preload=True), "new": new})
        for name in ("a", "off", "new"):
            router.wait(lambda name=name: router.models().get(name, {}).get("status") == "ready")
        assert router.pid("a") != before
        assert router.ask("/v1/completions", {"model": "a"}).json["words"] == ["two"]
        assert router.state("same") == "stopped"
