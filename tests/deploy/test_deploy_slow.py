"""Linters and schemas of the deployment files, and the Dockerfile's steps run as scripts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.containers import as_user, on_read_only_root
from tests.deploy.shipped import ROOT, STARTS, Instruction, read_stages
from tests.deploy.test_deploy_files import MANIFESTS, pod_templates
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_hadolint_reports_nothing(linters):
    """Except for two consecutive RUNs, which are separate for their comments."""
    command = [str(linters / "hadolint"), "--ignore", "DL3059", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_manifests_fit_the_schema_of_kubernetes(path, linters, tmp_path):
    """The schema has no LeaderWorkerSet, but its pods."""
    documents = [one for one in yaml.safe_load_all(path.read_text()) if one["kind"] != "LeaderWorkerSet"]
    documents += [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        for pod in pod_templates(path).values()
    ]
    file = tmp_path / "manifest.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    good = _validate(linters, file)
    assert good.returncode == 0, good.stdout + good.stderr
    file.write_text(file.read_text().replace("volumeMounts", "mounts"))
    assert _validate(linters, file).returncode != 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's folders /opt/vllm-cli, /src and /cache, made by its RUNs and COPYs in another folder."""
    root = tmp_path_factory.mktemp("image")
    (root / "src").mkdir()
    build, final = read_stages()
    for step in [*build, *(step for step in final if "/cache" in step.value)]:
        _run_step(step, root)
    return root


def test_installed_bytecode_is_used_without_a_check_of_its_source(image):
    package = next((image / "opt" / "vllm-cli" / "lib").glob("python*/site-packages/vllm_cli"))
    compiled = next((package / "__pycache__").glob("main.*.pyc")).read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 1  # by hash, never checked (PEP 552)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to change the user")
def test_the_image_s_program_serves_as_any_user_on_a_read_only_root(image, model_path):
    """With the image's variables; only /cache is writable."""
    cache, port = image / "cache", str(free_port())
    user = as_user(4711, 0, Path(sys.executable), model_path / "model.safetensors")
    read_only = on_read_only_root(cache)
    if user is None or read_only is None:
        pytest.skip("another user or a mount namespace is not possible")
    environment = {name: _below(image, value) for name, value in STARTS["image"].variables.items()}
    environment["PATH"] = environment["PATH"].replace("$PATH", os.environ["PATH"])
    launcher = (*read_only, *user)
    with (image / "log").open("w") as log:
        server = subprocess.Popen(
            [*launcher, *STARTS["image"].words, str(model_path), "--port", port],
            env=environment, cwd=cache, stderr=log,
        )  # fmt: skip
    try:
        words = ["vllm-cli", "wait", "--quiet", "--port", port, "--timeout", "600", "--pid", str(server.pid)]
        ready = subprocess.run([*launcher, *words], env=environment, cwd=cache, timeout=700)
        assert ready.returncode == 0, (image / "log").read_text()
        server.terminate()
        assert server.wait(120) == 0
    finally:
        server.kill()
        server.wait()
    written = [path for path in cache.rglob("*") if path.is_file()]
    assert written
    assert {path.stat().st_uid for path in written} == {4711}
    assert "Traceback" not in (image / "log").read_text()


def _below(image: Path, text: str) -> str:
    """The text with the image's folders replaced by those below `image`."""
    return re.sub(r"(?<![\w/])/(opt/vllm-cli|cache|src)\b", rf"{image}/\1", text)


def _validate(linters: Path, path: Path) -> subprocess.CompletedProcess[str]:
    command = [str(linters / "kubernetes-validate"), "--strict", "--kubernetes-version", "1.33", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def _run_step(step: Instruction, image: Path) -> None:
    sources = image / "src"
    if step.name == "COPY" and not step.value.startswith("--from"):
        *names, _ = step.words
        for name in names:
            source, target = ROOT / name, sources / name
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    elif step.name == "RUN":
        command = re.sub(r"^python ", f"{sys.executable} ", _below(image, step.value))
        done = subprocess.run(["sh", "-c", command], cwd=sources, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
