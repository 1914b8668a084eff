"""An image that stands in for vllm/vllm-openai, and the one that deploy/docker/vllm.Dockerfile makes of it.

The stand-in has this machine's interpreter. vLLM's packages are mounted, because they are gigabytes.
"""

import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Final

from tests.containers.podman import ROOT, STORE, build
from tests.support.peer_vllm import BIN, PYTHON

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
    """The option that mounts these packages."""
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
