"""Lints the Dockerfile, and runs its steps in a fresh Debian."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.shipped import ROOT, STARTS, Instruction, read_stages
from tests.support.debian_tools import require_tool
from tests.support.http_client import ask
from tests.support.ports import free_port

_SUITE: Final = "trixie"
_VARIABLES: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "PIP_DEFAULT_TIMEOUT": "180",
    "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_hadolint_reports_nothing(hadolint):
    """One rule is off: two consecutive RUNs are separate, because each has its comment."""
    command = [str(hadolint), "--ignore", "DL3059", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[Path]:
    """A fresh Debian in which all steps of both stages have run, with a model in /model."""
    require_tool("debootstrap")
    if os.getuid() != 0:
        pytest.skip("needs root")
    root = tmp_path_factory.mktemp("image")
    root.chmod(0o755)
    words = ["debootstrap", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"]
    subprocess.run([*words, _SUITE, root, *_mirror()], check=True, timeout=1200, stdout=subprocess.DEVNULL)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")  # as images of Python have it
    for name in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        shutil.copy(f"/{name}", root / name)
    shutil.copytree(model_path, root / "model")
    shutil.copytree(ROOT, root / "context", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    folder, variables = "/", dict(_VARIABLES)
    _run(root, variables, "chmod", "-R", "a+rX", "/model")
    for step in [step for stage in read_stages() for step in stage]:
        if step.name in ("ARG", "ENV"):
            variables |= _assigned(step)
        elif step.name == "WORKDIR":
            folder = step.value
            (root / folder[1:]).mkdir(exist_ok=True)
        elif step.name == "COPY" and not step.value.startswith("--from"):
            *names, target = step.words
            sources = shlex.join(f"/context/{name}" for name in names)
            _run(root, variables, "sh", "-c", f"cd {folder} && cp -r {sources} {target}")
        elif step.name == "RUN":
            _run(root, variables, "sh", "-c", f"cd {folder} && {step.value}")
    yield root
    shutil.rmtree(root)


def _mirror() -> list[str]:
    """The mirror of this machine's packages. Empty if debootstrap should use its default."""
    places = (Path("/etc/apt") / name for name in ("sources.list.d/debian.sources", "sources.list"))
    text = "\n".join(place.read_text() for place in places if place.exists())
    return re.findall(r"^(?:URIs: *|deb .*?)(https?://\S+debian/?)(?: |$)", text, re.MULTILINE)[:1]


def _assigned(step: Instruction) -> dict[str, str]:
    assigned = dict(word.split("=", 1) for word in shlex.split(step.value) if "=" in word)
    return {name: value.replace("$PATH", _VARIABLES["PATH"]) for name, value in assigned.items()}


def _in_image(root: Path, variables: Mapping[str, str], *options: str, prepare: str = "") -> list[str]:
    """A launcher that executes a program with this folder as root, in its own mount namespace."""
    script = (
        f'mount --bind "$0" "$0" && for name in proc dev; do mount --rbind /$name "$0/$name"; done && {prepare} true'
    )
    words = [f"{name}={value}" for name, value in variables.items()]
    chroot = ["chroot", *options, str(root), "/usr/bin/env", "-i", *words]
    return ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', str(root), *chroot]


def _run(root: Path, variables: Mapping[str, str], *command: str) -> None:
    done = subprocess.run([*_in_image(root, variables), *command], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_installed_bytecode_is_used_without_a_check_of_its_source(image):
    package = next((image / "opt/vllm-cli/lib").glob("python*/site-packages/vllm_cli"))
    for folder, name in ((package, "main"), (package / "packages" / "server", "build")):
        compiled = next((folder / "__pycache__").glob(f"{name}.*.pyc")).read_bytes()
        assert int.from_bytes(compiled[4:8], "little") == 1  # by hash, never checked (PEP 552)


@pytest.mark.parametrize("user", ["10001:0", "4711:0"])
def test_the_image_serves_as_any_user_on_a_read_only_root(user, image):
    """Only /cache and /tmp are writable."""
    port, start = str(free_port()), STARTS["image"]
    cache = image / "cache"
    prepare = f"mount -o remount,bind,ro {image} && mount -t tmpfs tmpfs {image}/tmp && mount -t tmpfs tmpfs {cache} &&"
    prepare += f" chgrp 0 {cache} && chmod 2775 {cache} && mount -t tmpfs tmpfs {image}/dev/shm &&"
    variables = {name: value.replace("$PATH", _VARIABLES["PATH"]) for name, value in start.variables.items()}
    launcher = _in_image(image, variables, f"--userspec={user}", prepare=prepare)
    words = [*start.words, "/model", "--port", port]
    with subprocess.Popen([*launcher, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            wait = [sys.executable, "-m", "vllm_cli", "wait", "--quiet", "--port", port, "--pid", str(server.pid)]
            ready = subprocess.run([*wait, "--timeout", "600"], timeout=700)
            body = {"model": "/model", "prompt": "Once", "max_tokens": 1}
            answer = ask(f"http://127.0.0.1:{port}/v1/completions", body) if ready.returncode == 0 else None
        finally:
            server.terminate()
            log = server.communicate(timeout=120)[0]
    assert (answer and answer.status, server.returncode) == (200, 0), log
    assert "Traceback" not in log
