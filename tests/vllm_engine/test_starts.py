"""Starts of real vLLM: start methods, JSON logs, a download, pods, and what is read or imported late."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from startup.logs.setup import PACKAGES
from tests.conversations.conversation import Turn, conversations, differences
from tests.deploy.container_root import ContainerRoot
from tests.deploy.shipped import PODS_OF_VLLM, pod_start
from tests.gpu_stub import gpu_server
from tests.support.folders import short_folder
from tests.support.hub import HubServer
from tests.support.peer_vllm import PYTHON, ROOT
from tests.support.ports import free_port
from tests.vllm_engine.conftest import SMALL, StartVllm
from tests.vllm_engine.vllm_server import VllmServer


@pytest.mark.versions
def test_log_records_are_json_with_the_names_of_their_processes(start_vllm):
    with start_vllm("ours", "--log-format", "json") as server:
        server.wait_ready().generate()
        server.wait_logged("differs from vllm serve")
        computing = [*server.titled("EngineCore"), *server.titled("Worker")]
        for path in [Path(f"/proc/{each.pid}/maps") for each in computing]:
            server.wait(lambda path=path: "xgrammar" in path.read_text())  # for the first structured output
        assert len(computing) == 2
        lines = server.log.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert {record["role"] for record in records} >= {"launcher", "APIServer", "EngineCore", "Worker"}
    [differences] = (record for record in records if record["message"].startswith("differs from vllm serve"))
    assert (differences["role"], differences["level"]) == ("launcher", "INFO")
    assert [line for line in lines if "INFO " in line and not line.startswith("{")] == []
    assert [line for line in lines if line.startswith(("(EngineCore", "(Worker"))] == []


@pytest.fixture
def hub(small_model: Path) -> Iterator[HubServer]:
    with HubServer().serving() as hub:
        hub.add("org/model", small_model)
        yield hub


_WORDS = ("--enforce-eager", "--max-model-len", "256", "--dtype", "float32")


def _variables(hub: HubServer, folder: Path) -> dict[str, str]:
    cache = {"HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1"}
    return {**cache, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}


def test_the_launcher_downloads_and_vllm_sends_no_request(hub, tmp_path, expected_text):
    arguments, environment = _WORDS, _variables(hub, tmp_path)
    with VllmServer("ours", Path("org/model"), *arguments, folder=tmp_path, environment=environment) as server:
        assert server.wait_ready().generate() == expected_text
    files = [name for name in hub.downloads if name != "org/model/model.safetensors"]
    assert len(files) == len(set(files)), "nothing is fetched twice"
    hub.reset()
    with VllmServer("ours", Path("org/model"), *arguments, folder=tmp_path, environment=environment) as server:
        assert server.wait_ready().generate() == expected_text
        (model,) = server.get("/v1/models")["data"]
        assert (model["id"], model["root"]) == ("model", "org/model")
    assert [seen.path for seen in hub.requests] == ["/api/models/org/model/revision/main"]


@pytest.mark.parametrize("name", PODS_OF_VLLM)
def test_the_preflight_accepts_a_pod(name, small_model):
    with short_folder() as folder:
        root = ContainerRoot(folder / "root", small_model, num_attention_heads=8)
        arguments, variables = root.prepare(pod_start(name))
        done = subprocess.run(
            [PYTHON, "-m", "vllm_cli", "serve", *arguments, "--port", str(free_port()), "--preflight-only"],
            env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr


_SOURCES = (*PACKAGES, "pyproject.toml", "setup.py", "README.md", "LICENSE")


def test_vllms_packages_stay_as_they_are(tmp_path):
    """Uses a new environment that sees all of vLLM's packages, so that the peer stays unchanged."""
    python = _environment_on_top_of_vllm(tmp_path / "venv")
    before = _freeze(python)
    assert any(line.startswith("vllm") for line in before)
    subprocess.run([python, "-m", "pip", "install", "--quiet", _copy_of_the_sources(tmp_path)], check=True, timeout=280)
    added = _freeze(python) - before
    assert before <= _freeze(python)
    assert {line.partition(" ")[0].partition("==")[0] for line in added} == {"vllm-cli-server"}


def _copy_of_the_sources(folder: Path) -> Path:
    """Copies the sources, because a build of a wheel writes into the source folder."""
    copy = folder / "checkout"
    shutil.copytree(
        ROOT, copy, ignore=lambda path, names: [n for n in names if path == str(ROOT) and n not in _SOURCES]
    )
    return copy


def _environment_on_top_of_vllm(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=280)
    [site_packages] = folder.glob("lib/python3*/site-packages")
    [packages_of_vllm] = PYTHON.parents[1].glob("lib/python3*/site-packages")
    (site_packages / "vllm.pth").write_text(f"{packages_of_vllm}\n")
    return folder / "bin" / "python"


def _freeze(python: Path) -> set[str]:
    done = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True, timeout=280)
    return set(done.stdout.splitlines())


_HERE = Path(__file__).parent
_OF_CUDA = pytest.mark.skipif(not gpu_server.PYTHON.exists(), reason="the CUDA build is not installed: make gpu-env")


def _run(python: Path, *arguments: object, environment: Mapping[str, str]) -> str:
    variables = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run([python, *arguments], capture_output=True, text=True, check=True, env=variables).stdout


@pytest.mark.parametrize("python", [PYTHON, pytest.param(gpu_server.PYTHON, marks=_OF_CUDA)], ids=["cpu", "cuda"])
def test_torch_gets_the_operators_of_plain_vllm(python, tmp_path):
    environment = gpu_server.gpu_environment(tmp_path) if python != PYTHON else {}
    answers: dict[str, Any] = {}
    for mode in ("plain", "eager", "compiled"):
        arguments = (_HERE / "import_operators.py", mode, tmp_path / mode, tmp_path / "plain")
        _run(python, *arguments[: 3 if mode == "plain" else 4], environment=environment)
        answers[mode] = json.loads((tmp_path / mode).read_text())
    plain = answers.pop("plain")
    for ours in answers.values():
        first, num_modules = ours["first"]
        assert set(first) <= set(plain["operators"]), "no operator is another one than in plain vLLM"
        assert ours["operators"] == plain["operators"], "late modules add theirs when they are used"
        assert num_modules < len(plain["modules"])
        assert (ours["names"], ours["late"]) == (plain["names"], [])


def test_a_kernel_is_compiled_from_the_source_that_was_imported_as_by_plain_triton(tmp_path):
    """An upgrade may replace the file under a running server. No member of ours is pickled with it."""
    answers = {}
    for mode in ("plain", "ours"):
        folder = tmp_path / mode
        folder.mkdir()
        environment = {"TRITON_CACHE_DIR": str(folder / "kernels"), "VLLM_CACHE_ROOT": str(folder)}
        answers[mode] = json.loads(_run(PYTHON, _HERE / "triton_kernels.py", folder, mode, environment=environment))
    assert answers["ours"] == answers["plain"]
    assert answers["ours"]["factors"] == ["3.0"]


@pytest.mark.parametrize(
    ("python", "late"),
    [
        (PYTHON, {"aiohttp", "requests", "cpuinfo"}),
        pytest.param(gpu_server.PYTHON, {"torchvision.datasets", "torchvision.models"}, marks=_OF_CUDA),
    ],
    ids=["cpu", "cuda"],
)
def test_late_modules_are_what_programs_see_in_plain_vllm(python, late, tmp_path):
    environment = gpu_server.gpu_environment(tmp_path) if python != PYTHON else {}
    answers = {}
    for mode in ("plain", "late"):
        _run(python, _HERE / "late_modules.py", tmp_path / mode, mode, environment=environment)
        answers[mode] = json.loads((tmp_path / mode).read_text())
    assert late <= set(answers["late"]["late"])
    assert answers["plain"]["late"] == []
    assert answers["late"]["seen"] == answers["plain"]["seen"]


_WARNING = re.compile(r"WARNING [\d: -]+\(\w+\) startup\..*")
"""Matches our warning, also after a line that a library has not ended."""
_BROKEN = Path(__file__).parents[1] / "startup" / "vllm" / "broken"


@pytest.mark.parametrize(
    "fault",
    ["execution", "fork", "protocol", "killed in its imports", "stopped with a request", "patch in engine"],
)
def test_a_start_that_only_our_machinery_breaks_is_ready_with_one_line(fault, small_model, expected_text, tmp_path):
    variables = {"PYTHONPATH": str(_BROKEN), "BROKEN": fault}
    with VllmServer("ours", small_model, *SMALL, folder=tmp_path, environment=variables) as server:
        server.wait_ready()
        assert server.generate() == expected_text
        lines = _WARNING.findall(server.log)
        assert len(lines) == 1, lines
        assert server.terminate() == 0


MARKED = [turn for one in conversations() for turn in one.turns if turn.line.get("vllm")]


@pytest.fixture(scope="module")
def server(start_vllm: StartVllm) -> Iterator[VllmServer]:
    with start_vllm("ours", "--max-model-len", "512") as server:
        server.wait_ready()
        yield server


@pytest.mark.parametrize("turn", [pytest.param(turn, id=turn.place) for turn in MARKED])
def test_vllm_answers_as_recorded(server: VllmServer, turn: Turn) -> None:
    answer = server.ask(turn.path, None if turn.body is None else {"model": "model"} | turn.body)
    body = _content(answer.body)
    problems = [
        *differences("status", answer.status, {"": turn.line.get("status", 200)}),
        *differences("answer", body, turn.line.get("answer", {})),
    ]
    assert problems == [], body


def _content(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode()
