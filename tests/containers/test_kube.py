"""`podman kube play` runs the pods, with their secrets, volumes and liveness probes.

A pod gets what a user's kustomization sets: a model on disk, and a port of this machine. vLLM is the build
for CPUs, so its pods request no GPUs. podman knows Deployments and pods, so pods of other kinds are played as
pods.
"""

import base64
import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.podman import PACKAGES, PROMPT, packages_of, podman
from tests.deploy.manifests import pod_of, render
from tests.deploy.shipped import PODS_OF_EMBEDDED, PODS_OF_VLLM, SECRETS
from tests.support.http_client import Answer, ask
from tests.support.peer_vllm import PYTHON
from tests.support.ports import free_port
from tests.support.waiting import wait_until

_OF_PODMAN = ("ConfigMap", "PersistentVolumeClaim")
_ON_ONE_NODE = [*PODS_OF_EMBEDDED, *(name for name in PODS_OF_VLLM if "two-nodes" not in name)]
_TRACED = '--compilation-config={"mode": 2, "backend": "eager"}'
"""vLLM for CPUs makes the buffers between pipeline stages in a trial run. --enforce-eager leaves it out."""
_ADDRESSES = {"leader": "10.88.100.1", "worker": "10.88.100.2"}  # in podman's network


class _Pod:
    """A running pod with one container."""

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
    words = container["args"]
    path = words[0] if words[0].startswith("/") else "/models"
    words[0] = path if re.fullmatch(r"[\w-]+/[\w.-]+", words[0]) else words[0]
    folders = {path: model}
    if name in PODS_OF_VLLM:
        words += ["--tensor-parallel-size=1", "--max-model-len=512", mode]
        folders[PACKAGES] = packages_of(PYTHON)
        container["env"].append({"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"})
        container["resources"]["limits"].pop("nvidia.com/gpu")
    for number, (path, folder) in enumerate(folders.items()):
        container["volumeMounts"].append({"name": f"folder-{number}", "mountPath": path})
        spec["volumes"].append({"name": f"folder-{number}", "hostPath": {"path": str(folder), "type": "Directory"}})
    for kind in _OF_PODMAN:
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
            container["args"] = [word.replace(f"$({name})", value) for word in container["args"]]
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
