"""`ps`, `load`, `unload` and `stop` with a router of two models."""

import json
from typing import Any

from tests.e2e.server_process import ServerProcess
from tests.support.cli import run_cli
from tests.support.waiting import is_gone, wait_until


def _entry(router: ServerProcess) -> dict[str, Any]:
    """The entry of this router in `ps`. Checks that no other entry has one of its processes."""
    entries = json.loads(run_cli("ps", "--json").stdout)
    pids = {process.pid for process in router.family()}
    (entry,) = [each for each in entries if pids & set(each["pids"])]
    return dict(entry)


def _states(router: ServerProcess) -> dict[str, str]:
    return {each["model"]: each["state"] for each in _entry(router)["models"]}


def test_models_are_loaded_shown_and_unloaded_and_stop_ends_all(tiny_llama, tmp_path):
    file = tmp_path / "models.yaml"
    file.write_text(json.dumps({"models": {name: {"model": str(tiny_llama)} for name in ("alpha", "beta")}}))
    words = ["--models", str(file), "--engine", "embedded", "--max-model-len", "256", "--idle-warm", "off"]
    with ServerProcess(words) as router:
        _load_and_unload(router)
        assert run_cli("load", "beta", "--port", str(router.port)).returncode == 0
        entry = _entry(router)
        done = run_cli("stop", str(router.port))
        assert done.returncode == 0, done.stderr
        assert router.process.wait(30) == 0
        wait_until(lambda: all(map(is_gone, entry["pids"])))


def _load_and_unload(router: ServerProcess) -> None:
    done = run_cli("load", "alpha", "--port", str(router.port), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "ready"
    entry = _entry(router)
    assert (entry["pid"], entry["port"], entry["engine"]) == (router.process.pid, router.port, "router")
    assert (entry["state"], entry["model"], entry["forked_pid"]) == ("ready", "2 models, 1 ready", None)
    alpha, beta = entry["models"]
    assert (alpha["model"], alpha["state"], alpha["engine"]) == ("alpha", "ready", "embedded")
    assert alpha["pid"] in entry["pids"]
    assert (entry["start"], alpha["start"]["start_mode"], beta["start"]) == (None, "cold", None)
    assert (beta["state"], beta["pid"], beta["memory_bytes"]) == ("stopped", None, None)
    lines = run_cli("ps").stdout.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith(f"{router.process.pid} "))
    assert [line.split()[-2] for line in lines[at + 1 : at + 3]] == ["alpha", "beta"]

    assert run_cli("unload", "alpha", "--url", f"{router.url}/v1").returncode == 0
    assert _states(router) == {"alpha": "stopped", "beta": "stopped"}
    assert is_gone(alpha["pid"])
