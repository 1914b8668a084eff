"""What a container runtime and a cluster would say: linters and schemas, and the Dockerfile's steps as scripts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT, Instruction, read_stages
from tests.deploy.test_deploy_files import MANIFEST
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_hadolint_has_nothing_to_say(linters: Path) -> None:
    """But for two RUNs in a row, which are two for their comments."""
    command = [str(linters / "hadolint"), "--ignore", "DL3059", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_manifests_fit_the_schema_of_kubernetes(linters: Path, tmp_path: Path) -> None:
    command = [str(linters / "kubernetes-validate"), "--strict", "--kubernetes-version", "1.33"]
    good = subprocess.run([*command, str(MANIFEST)], capture_output=True, text=True, timeout=600)
    assert good.returncode == 0, good.stdout + good.stderr
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(MANIFEST.read_text().replace("periodSeconds", "perSeconds"))
    assert subprocess.run([*command, str(wrong)], capture_output=True, timeout=600).returncode != 0


def test_the_steps_of_the_build_make_a_server_that_starts(model_path: Path, tmp_path: Path) -> None:
    """The RUNs and COPYs of the build stage, with other folders; then what the image would execute, without writing."""
    venv, sources = tmp_path / "opt" / "vllm-cli", tmp_path / "src"
    sources.mkdir()
    for step in read_stages()[0]:
        _do(step, venv, sources)
    package = next((venv / "lib").glob("python*/site-packages/vllm_cli"))
    compiled = next((package / "__pycache__").glob("main.*.pyc")).read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 1  # by hash, never checked (PEP 552)

    port = str(free_port())
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PATH": f"{venv}/bin:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            ["vllm-cli", "serve", str(model_path), "--port", port], env=environment, cwd=tmp_path, stderr=log
        )
    try:
        words = ["vllm-cli", "wait", "--quiet", "--port", port, "--timeout", "600", "--pid", str(server.pid)]
        ready = subprocess.run(words, env=environment, cwd=tmp_path, timeout=700)
        assert ready.returncode == 0, (tmp_path / "log").read_text()
        server.terminate()
        assert server.wait(120) == 0
    finally:
        server.kill()
        server.wait()


def _do(step: Instruction, venv: Path, sources: Path) -> None:
    if step.name == "COPY":
        *names, _ = step.words
        for name in names:
            source, target = ROOT / name, sources / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    elif step.name == "RUN":
        command = re.sub(r"^python ", f"{sys.executable} ", step.value.replace("/opt/vllm-cli", str(venv)))
        done = subprocess.run(["sh", "-c", command], cwd=sources, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
