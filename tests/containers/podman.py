"""Podman with a store of its own, images of this repository, and containers as servers.

Images stay in .peers/containers for later runs. The base image is a Debian of `tools/machines.py`, which
replaces `python:…-slim`. Builds use the host's settings of pip, and the local folders that they name. The
stand-in for vllm/vllm-openai has this machine's interpreter. vLLM's packages are mounted: they are gigabytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tests.support.peer_vllm import BIN, PYTHON
from tests.support.ports import free_port
from tests.support.program import Server
from tools import machines
from tools.install import read_pip_settings

ROOT: Final = Path(__file__).parents[2]
STORE: Final = ROOT / ".peers" / "containers"
_PYTHON: Final = "3.11"
"""The Python of this Debian."""
_CONTAINERS_CONF: Final = """[containers]
default_ulimits = []
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
"""
"""No limits are raised, because some kernels forbid it. Neither systemd nor journald needs to run."""
_STORAGE_CONF: Final = """[storage]
driver = "overlay"
graphroot = "{store}/storage"
runroot = "/run/vllm-cli-test-containers"
"""
_BASE: Final = """FROM localhost/debian
RUN apt-get update -qq -o Acquire::Check-Valid-Until=false && apt-get install -qq -y curl \
 && ln -s /usr/bin/python3 /usr/local/bin/python
"""
"""Podman runs `curl` in the container for a probe with httpGet."""

PROMPT: Final = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
_SOURCES_OF_PIP: Final = ("index-url", "extra-index-url", "find-links", "trusted-host", "cert")


def podman(*words: object, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs podman. Its output is in the result and in the message of a failure."""
    command = ["podman", *map(str, words)]
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, timeout=1800, **options)
    assert done.returncode == 0 or not check, f"{command}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
    return done


@cache
def variables() -> dict[str, str]:
    """The variables of podman. Writes the files that they name."""
    STORE.mkdir(exist_ok=True)
    (STORE / "containers.conf").write_text(_CONTAINERS_CONF)
    (STORE / "storage.conf").write_text(_STORAGE_CONF.format(store=STORE.resolve()))
    return {
        **os.environ,
        "CONTAINERS_CONF": str(STORE / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(STORE / "storage.conf"),
        "DISABLE_HC_SYSTEMD": "true",
    }


def build(name: str, *words: object, context: Path = ROOT, file: str | None = None) -> str:
    """Builds an image, from the text of a Dockerfile or from the context's file. Returns the name."""
    words = (*words, "--build-arg", f"PYTHON_VERSION={_PYTHON}", *_pip(), *(("-f", "-") if file else ()))
    podman("build", "--format=docker", "--network=host", "--pull=never", "-t", name, *words, context, input=file)
    return name


def build_base() -> None:
    """Builds the image that replaces `python:…-slim`, unless it exists."""
    name = f"localhost/python:{_PYTHON}-slim"
    if podman("image", "exists", name, check=False).returncode:
        folder = machines.make_image("bookworm")
        with subprocess.Popen(["tar", "-C", folder, "--exclude=./dev/*", "-c", "."], stdout=subprocess.PIPE) as tar:
            podman("import", "-", "localhost/debian", stdin=tar.stdout)
        build(name, file=_BASE, context=STORE / "empty")


@cache
def _pip() -> list[str]:
    """Mounts the host's settings of pip into builds, with the folders that they name."""
    settings = {key: value for key, value in read_pip_settings().items() if key in _SOURCES_OF_PIP}
    lines = (f"{key} = {value}".replace("\n", " ") for key, value in settings.items())
    (STORE / "empty").mkdir(exist_ok=True)
    (STORE / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    folders = {*settings.get("find-links", "").split(), *re.findall(r"file://(/\S+)/simple", str(settings))}
    mounts = {STORE / "pip.conf": "/etc/pip.conf", **{Path(folder): folder for folder in folders}}
    return [f"--volume={source.resolve()}:{target}:ro" for source, target in mounts.items() if source.exists()]


class Container(Server):
    """`podman run` of an image whose port 8000 is a free port of this machine."""

    def __init__(
        self,
        image: str,
        *words: object,
        options: tuple[object, ...] = (),
        is_awaited: bool = True,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.name = f"vllm-cli-{self.port}"
        run = ["podman", "run", "--rm", f"--name={self.name}", f"--publish=127.0.0.1:{self.port}:8000"]
        super().__init__([*run, *options, image, *words], variables(), is_awaited=is_awaited)

    def execute(self, *words: object) -> str:
        """The output of a command in the container."""
        return podman("exec", self.name, *words).stdout.strip()

    def inspect(self) -> dict[str, Any]:
        """What podman knows of the container."""
        [found] = json.loads(podman("inspect", self.name).stdout)
        return dict(found)

    def assert_serves(self) -> None:
        answer = self.ask("/v1/completions", {"model": "/model", **PROMPT}, timeout_s=200)
        assert (answer.status, answer.json and answer.json["choices"][0]["text"].strip()) == (200, "Paris."), self.log

    def assert_stops(self) -> None:
        """`docker stop` lets a stream finish. The exit code is the server's."""
        assert self.terminate() == 0, self.log
        assert "Traceback" not in self.log

    def stop(self) -> list[Any]:
        podman("rm", "--force", "--ignore", "--time=0", self.name)
        return super().stop()


PACKAGES: Final = "/opt/packages"
STAND_IN: Final = "localhost/vllm-openai"
WITH_VLLM_CLI: Final = "vllm-with-vllm-cli"
_DOCKERFILE: Final = """FROM localhost/python:3.11-slim
RUN apt-get update -qq -o Acquire::Check-Valid-Until=false && apt-get install -qq -y g++ libnuma1
COPY --from=python . /opt/python
COPY --from=vllm vllm /opt/python/bin
RUN ldconfig /opt/python/lib && cd /opt/python/bin && \
  sed -i '1s|^#!/.*/python.*|#!/opt/python/bin/python3|' $(grep -lI '^#!/' *)
RUN mkdir -m 1777 /cache
ENV PATH=/opt/python/bin:$PATH PYTHONPATH=/opt/packages
ENTRYPOINT ["vllm", "serve"]
"""
"""Everyone may write to /cache, because podman does not know fsGroup."""


def packages_of(python: Path) -> Path:
    """The packages of an interpreter's environment."""
    [packages] = python.parents[1].glob("lib/python3*/site-packages")
    return packages.resolve()


def mount_of(python: Path) -> str:
    return f"--volume={packages_of(python)}:{PACKAGES}:ro"


def build_vllm_images() -> None:
    """Builds both images, the second with a wheel of this clone."""
    contexts = {"python": PYTHON.resolve().parents[1], "vllm": BIN}
    words = [f"--build-context={name}={folder.resolve()}" for name, folder in contexts.items()]
    build(STAND_IN, *words, file=_DOCKERFILE, context=STORE / "empty")
    dist = STORE / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, dist, ROOT], check=True)
    digest = sha256(next(dist.iterdir()).read_bytes()).hexdigest()
    file = re.sub("(?m)^FROM .*", f"FROM {STAND_IN}", (ROOT / "deploy/docker/vllm.Dockerfile").read_text())
    build(WITH_VLLM_CLI, mount_of(PYTHON), f"--build-arg=WHEEL_SHA256={digest}", file=file, context=dist)
