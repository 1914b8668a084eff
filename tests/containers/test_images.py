"""Builds and runs the image, the baked image, compose.yaml, vLLM's image, and pods with `podman kube play`.

A pod gets what a user's kustomization sets: a model on disk, and a port of this machine. vLLM is the build
for CPUs, so its pods request no GPUs.
"""

import base64
import copy
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.containers.podman import (
    PACKAGES,
    PROMPT,
    ROOT,
    STAND_IN,
    Container,
    build,
    mount_of,
    packages_of,
    podman,
    variables,
)
from tests.deploy.manifests import pod_of, render
from tests.deploy.shipped import PODS_OF_EMBEDDED, PODS_OF_VLLM, SECRETS
from tests.gpu_stub.gpu_server import PYTHON as CUDA_PYTHON
from tests.gpu_stub.gpu_server import STUB, gpu_environment
from tests.support.http_client import Answer, ask
from tests.support.peer_vllm import PYTHON
from tests.support.ports import free_port
from tests.support.waiting import wait_until


class _Way(NamedTuple):
    """Options of `podman run`, and a script whose output in the container proves their effect."""

    options: tuple[str, ...]
    proof: str
    output: str


_CAPABILITIES = "grep -h -e CapBnd -e NoNewPrivs /proc/1/status | tr -d '[:alpha:]:[:space:]'"
WAYS = {
    "as shipped": _Way((), "id -u && id -g", "10001\n0"),
    "any user of group 0": _Way(("--user=4711:0",), "stat -c %u:%g /proc/1", "4711:0"),
    "root": _Way(("--user=0",), "id -u", "0"),
    "read-only root": _Way(("--read-only", "--tmpfs=/tmp"), "touch /new 2>/dev/null || echo read-only", "read-only"),
    "seccomp": _Way((), "grep -h Seccomp: /proc/*/status | sort -u | tr -d '[:space:]'", "Seccomp:2"),
    "no capabilities": _Way(
        ("--cap-drop=ALL", "--security-opt=no-new-privileges"), _CAPABILITIES, "0000000000000000" + "1"
    ),
    "--init": _Way(("--init",), "cat /proc/1/comm", "podman-init"),
    "half a processor": _Way(("--cpus=0.5",), "", ""),
    "a limit that fits": _Way(("--memory=2g", "--memory-swap=2g"), "", ""),
    "64 processes": _Way(("--pids-limit=64",), "", ""),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_image_serves_and_stops(way, image, mounted):
    options, proof, output = WAYS[way]
    with Container(image, "/model", options=(*options, mounted)) as server:
        server.assert_serves()
        assert server.execute("sh", "-c", proof) == output
        assert podman("healthcheck", "run", server.name, check=False).returncode == 0
        server.assert_stops()


def test_bytecode_is_used_without_a_check_of_its_source(image):
    """Its flags are 1: by hash, never checked (PEP 552)."""
    files = "/opt/vllm-cli/lib/python3*/site-packages/vllm_cli/__pycache__/main.*.pyc"
    script = f"od -An -td4 -j4 -N4 {files}"
    assert podman("run", "--rm", "--entrypoint=sh", image, "-c", script).stdout.split() == ["1"]


def test_without_a_network_it_serves_a_model_on_disk(image, mounted):
    with Container(image, "/model", options=(mounted, "--network=none"), is_awaited=False) as server:
        _assert_serves_inside(server)
        server.assert_stops()


def _assert_serves_inside(server: Container) -> None:
    """For containers whose port cannot be reached."""
    wait_until(lambda: not podman("container", "exists", server.name, check=False).returncode)
    server.execute("vllm-cli", "wait", "--timeout=200")
    assert "Paris" in server.execute("vllm-cli", "chat", "--temperature=0", "--quick", "What is the capital of France?")


def test_a_limit_that_is_too_small_is_named(image, mounted):
    """The start fails with a sentence, before the kernel kills a process."""
    options = (mounted, "--memory=300m", "--memory-swap=300m")
    with Container(image, "/model", options=options, is_awaited=False) as server:
        code = server.process.wait(300)
    assert code == 3, server.log
    assert "raise the container's memory limit" in server.log


def test_two_containers_share_a_volume_with_the_next_start(image, mounted):
    options = ("--volume=shared:/cache", mounted)
    with Container(image, "/model", options=options) as first, Container(image, "/model", options=options) as second:
        for server in (first, second):
            server.assert_serves()
            server.assert_stops()
    with Container(image, "/model", options=options) as third:
        third.assert_serves()
        wait_until(lambda: third.execute("sh", "-c", "cat /cache/vllm/vllm_cli/history/*").count("total_s") > 1)
        third.assert_stops()


def test_the_baked_image_needs_no_volume_and_no_network(image, model):
    baked = ROOT / "deploy" / "docker" / "baked.Dockerfile"
    name = build("baked", f"--build-context=model={model}", context=baked.parent, file=baked.read_text())
    options = ("--read-only", "--tmpfs=/tmp:exec", "--network=none")
    with Container(name, options=options, is_awaited=False) as server:
        _assert_serves_inside(server)
        server.assert_stops()


def test_compose_serves_and_stops(image, model, tmp_path):
    """Version 1.0.3 of podman-compose knows no empty defaults. The model is in the project's volume."""
    file = tmp_path / "compose.yaml"
    file.write_text(re.sub(r"\$\{(\w+):-\}", r"${\1:-none}", (ROOT / "compose.yaml").read_text()))
    port = free_port()
    environment = variables() | {"MODEL": "/cache/model", "PORT": str(port), "VLLM_API_KEY": "a-key"}

    def compose(*arguments: str) -> None:
        command = ["podman-compose", "-p", "composed", "-f", str(file), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    volumes = ("--volume=composed_cache:/cache", f"--volume={model}:/model:ro")
    podman("run", "--rm", "--user=0", "--entrypoint=cp", *volumes, image, "-r", "/model", "/cache")
    try:
        compose("up", "-d", "--no-build")
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: ask(f"{url}/health").status == 200, 200)
        answer = ask(f"{url}/v1/completions", {"model": "/cache/model", **PROMPT}, key="a-key", timeout_s=200)
        assert "Paris" in answer.json["choices"][0]["text"]
    finally:
        compose("down", "--volumes")


_READY_S = 1200.0
_WORDS = ("/model", "--enforce-eager", "--max-model-len=512")
_OPTIONS = ("--user=4711:0", "--read-only", "--tmpfs=/tmp:exec", "--cap-drop=ALL", "--shm-size=1g")
_VARIABLES = {"HOME": "/tmp", "USER": "someone", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


def _server(image: str, *options: str, variables: dict[str, str]) -> Container:
    settings = [f"--env={name}={value}" for name, value in variables.items()]
    return Container(image, *_WORDS, options=(*_OPTIONS, *settings, *options), is_awaited=False)


@pytest.mark.parametrize("is_ours", [False, True], ids=["as it is", "with the page's lines"])
def test_the_image_of_vllm_serves_by_its_entrypoint(is_ours, vllm_image, mounted):
    """With the page's lines, `vllm serve` is vllm-cli, which has /livez."""
    with _server(vllm_image if is_ours else STAND_IN, mount_of(PYTHON), mounted, variables=_VARIABLES) as server:
        server.wait(lambda: server.health() == 200, _READY_S)
        server.assert_serves()
        assert server.ask("/livez").status == (200 if is_ours else 404)
        if is_ours:
            server.assert_stops()
        else:
            assert server.terminate() == 0  # vLLM logs a traceback


@pytest.mark.skipif(not CUDA_PYTHON.exists(), reason="`make gpu-env` has not run")
def test_the_cuda_build_serves_for_any_user_on_a_read_only_root(vllm_image, mounted):
    """Without kernels, so the text means nothing."""
    variables = _VARIABLES | gpu_environment(Path("/tmp"))
    with _server(
        vllm_image, mount_of(CUDA_PYTHON), f"--volume={STUB}:{STUB}:ro", mounted, variables=variables
    ) as server:
        server.wait(lambda: server.health() == 200, _READY_S)
        assert server.ask("/v1/completions", {"prompt": "Once", "max_tokens": 4}).status == 200, server.log
        server.assert_stops()


_ON_ONE_NODE = [*PODS_OF_EMBEDDED, *(name for name in PODS_OF_VLLM if "two-nodes" not in name)]
_TRACED = '--compilation-config={"mode": 2, "backend": "eager"}'
"""vLLM for CPUs makes the buffers between pipeline stages in a trial run. --enforce-eager leaves it out."""
_ADDRESSES = {"leader": "10.88.100.1", "worker": "10.88.100.2"}  # in podman's network


class _Pod:
    def __init__(self, container: str, port: int) -> None:
        self._container = container
        self._url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: object = None) -> Answer:
        return ask(self._url + path, body, key=SECRETS["api-key"], timeout_s=200)

    def wait_ready(self) -> None:
        """Waits as the kubelet does for the startup probe. Then podman's liveness probe succeeds."""
        wait_until(lambda: self.ask("/health").status == 200, 600)
        podman("healthcheck", "run", self._container)

    def log(self) -> str:
        done = podman("logs", self._container)
        return done.stdout + done.stderr

    def execute(self, script: str) -> str:
        return podman("exec", self._container, "sh", "-c", script).stdout.strip()

    def stop(self, grace_s: int) -> int:
        """Stops the container as the kubelet does. Returns its exit code."""
        podman("stop", f"--time={grace_s}", self._container)
        return int(podman("inspect", "--format={{.State.ExitCode}}", self._container).stdout)


def _documents(name: str, model: Path, port: int, mode: str = "--enforce-eager") -> Iterator[dict[str, Any]]:
    """The documents of a pod's variant that podman knows. `mode` is a word for vLLM."""
    rendered, pod = copy.deepcopy((render(name.partition(" ")[0]), pod_of(name)))
    spec = pod["spec"]
    [container] = spec["containers"]
    for listening in container.get("ports", ()):
        listening["hostPort"] = port
    if "args" not in container:  # a baked image: these tests give the image without a model its arguments
        container["args"] = ["/models/model"]
    arguments = container["args"]
    path = arguments[0] if arguments[0].startswith("/") else "/models"
    arguments[0] = path if re.fullmatch(r"[\w-]+/[\w.-]+", arguments[0]) else arguments[0]
    folders = {path: model}
    if name in PODS_OF_VLLM:
        arguments += ["--tensor-parallel-size=1", "--max-model-len=512", mode]
        folders[PACKAGES] = packages_of(PYTHON)
        container["env"].append({"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"})
        container["resources"]["limits"].pop("nvidia.com/gpu")
    for number, (path, folder) in enumerate(folders.items()):
        container["volumeMounts"].append({"name": f"folder-{number}", "mountPath": path})
        spec["volumes"].append({"name": f"folder-{number}", "hostPath": {"path": str(folder), "type": "Directory"}})
    for kind in ("ConfigMap", "PersistentVolumeClaim"):
        if document := rendered.get(kind):
            for file, text in document.get("data", {}).items():
                document["data"][file] = re.sub(r"(model: )\S+", r"\1/models", text)
            yield document
    if deployment := rendered.get("Deployment"):
        deployment["spec"]["template"] = pod
        yield deployment
    else:
        pod["metadata"] = {"name": "-".join(["vllm-cli", *name.split()[1:]])}
        yield {"apiVersion": "v1", "kind": "Pod"} | pod


def _group(model: Path, folder: Path, port: int) -> Iterator[dict[str, Any]]:
    """Both pods of a group, with the variables of LeaderWorkerSet's controller, and a cache for each node."""
    for index, role in enumerate(_ADDRESSES):
        [pod] = _documents(f"vllm-two-nodes {role}", model, port, _TRACED)
        [cache] = (volume["hostPath"] for volume in pod["spec"]["volumes"] if volume["name"] == "cache")
        cache["path"] = str(folder / role)
        Path(cache["path"]).mkdir()
        Path(cache["path"]).chmod(0o777)
        known = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": str(index), "LWS_LEADER_ADDRESS": _ADDRESSES["leader"]}
        [container] = pod["spec"]["containers"]
        for name, value in known.items():  # podman 4 does not expand $(NAME)
            container["args"] = [argument.replace(f"$({name})", value) for argument in container["args"]]
        yield pod


@contextmanager
def _played(documents: list[dict[str, Any]], folder: Path, port: int, *options: str) -> Iterator[list[_Pod]]:
    file = folder / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    secret = {key: base64.b64encode(value.encode()).decode() for key, value in SECRETS.items()}
    try:
        podman("secret", "create", "vllm-cli", "-", input=json.dumps(secret))  # podman 4 misreads `kind: Secret`
        podman("kube", "play", *options, file)
        containers = podman("ps", "--filter=name=^vllm-cli-", "--sort=names", "--format={{.Names}}").stdout.split()
        yield [_Pod(container, port) for container in containers]
    finally:
        podman("kube", "down", file, check=False)
        podman("volume", "rm", "--all", "--force")
        podman("secret", "rm", "--all")


_RIGHTS = (
    "id -u; touch /new 2>/dev/null || echo read-only; "
    "grep -h -e CapBnd -e NoNewPrivs -e Seccomp: /proc/1/status | tr -d '[:alpha:]:[:space:]'"
)


@pytest.mark.parametrize("name", _ON_ONE_NODE)
def test_a_pod_serves_has_only_its_rights_and_stops(name, model, tmp_path, request):
    request.getfixturevalue("vllm_image" if name in PODS_OF_VLLM else "image")
    port = free_port()
    with _played(list(_documents(name, model, port)), tmp_path, port) as [pod]:
        pod.wait_ready()
        for model in pod.ask("/v1/models").json["data"]:
            body = {"model": model["id"], **PROMPT}
            assert "Paris" in pod.ask("/v1/completions", body).json["choices"][0]["text"], pod.log()
        assert ask(f"http://127.0.0.1:{port}/v1/completions", body).status == 401  # without the secret's key
        assert pod.execute(_RIGHTS).split() == ["10001", "read-only", "0000000000000000" + "1" + "2"]
        assert pod.stop(45) == 0, pod.log()
        assert "Traceback" not in pod.log()


def test_a_pod_whose_engine_dies_is_ready_again(image, model, tmp_path):
    """podman restarts the container, as the kubelet does. The engine is the largest process."""
    port = free_port()
    with _played(list(_documents("embedded", model, port)), tmp_path, port) as [pod]:
        pod.wait_ready()
        pod.execute("kill -9 $(ps -eo pid --sort=-rss --no-headers | head -n1)")
        wait_until(lambda: pod.ask("/readyz").status != 200)
        pod.wait_ready()


def test_the_pods_of_two_nodes_serve_together(vllm_image, model, tmp_path):
    """The worker does not end with the leader. LeaderWorkerSet's controller ends it, as this test does."""
    port = free_port()
    options = ("--network=podman", *(f"--ip={address}" for address in _ADDRESSES.values()))
    with _played(list(_group(model, tmp_path, port)), tmp_path, port, *options) as [leader, worker]:
        leader.wait_ready()
        assert "Paris" in leader.ask("/v1/completions", PROMPT).json["choices"][0]["text"], leader.log() + worker.log()
        assert [pod.stop(60) for pod in (leader, worker)] == [0, 0], leader.log() + worker.log()
