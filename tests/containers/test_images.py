"""Builds and runs the image, the baked image and compose.yaml."""

import re
import subprocess
from typing import NamedTuple

import pytest

from tests.containers.podman import PROMPT, ROOT, Container, build, podman, variables
from tests.support.http_client import ask
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
    options = ("--read-only", "--tmpfs=/tmp", "--network=none")
    with Container(name, options=options, is_awaited=False) as server:
        _assert_serves_inside(server)
        server.assert_stops()


def test_compose_serves_and_stops(image, model, tmp_path):
    """Version 1.0.3 of podman-compose knows no empty defaults. The model is in the project's volume."""
    file = tmp_path / "compose.yaml"
    file.write_text(re.sub(r"\$\{(\w+):-\}", r"${\1:-none}", (ROOT / "compose.yaml").read_text()))
    port = free_port()
    environment = variables() | {"MODEL": "/cache/model", "PORT": str(port), "VLLM_API_KEY": "a-key"}

    def compose(*words: str) -> None:
        command = ["podman-compose", "-p", "composed", "-f", str(file), *words]
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
