# vllm-cli with its embedded engine; runs as any user, with a root file system that is read-only.
#
#   docker build -t vllm-cli .
#   docker build -t vllm-cli:cpu --build-arg PIP_EXTRA_INDEX_URL=... .    PyTorch's CPU builds: some gigabytes less
#   docker run -p 8000:8000 -v vllm-cli-cache:/cache vllm-cli MODEL
#
# With a model, and a first start that is as fast as the tenth: deploy/docker/baked.Dockerfile.
# docs/containers.md has the rest: GPUs, Kubernetes, systemd.

ARG PYTHON_VERSION=3.12
# A tag may change: for equal images, give python:3.12-slim@sha256:... of your registry.
ARG BASE_IMAGE=python:${PYTHON_VERSION}-slim

FROM ${BASE_IMAGE} AS build
# Where pip looks beside its default index; with an index of PyTorch's CPU builds, pip prefers those.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# Installs all packages in the version and with the hash of constraints.txt. uv stays in this stage.
COPY constraints.txt ./
COPY tools/install.py tools/
RUN python -m venv /opt/vllm-cli && python -m venv /opt/uv && /opt/uv/bin/python -m tools.install uv
ENV PATH=/opt/uv/bin:$PATH

# Dependencies have a layer of their own, which a change of the sources leaves alone.
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*p['dependencies'], *p['optional-dependencies']['embedded'], sep='\n')" > requirements.txt && \
    /opt/vllm-cli/bin/python -m tools.install -r requirements.txt

COPY README.md LICENSE setup.py ./
COPY envs envs
COPY base base
COPY router router
COPY server server
COPY startup startup
COPY vllm_cli vllm_cli
RUN /opt/vllm-cli/bin/python -m tools.install --no-deps .

# Nobody can write .pyc files later; nor does anybody look whether the sources have changed, which saves file accesses.
# Some packages bring sources for other versions of Python, which cannot be compiled.
RUN /opt/vllm-cli/bin/python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /opt/vllm-cli/lib || true


FROM ${BASE_IMAGE}
# The image comes without the .pyc files of the standard library.
RUN python -m compileall -q -f -j 0 --invalidation-mode unchecked-hash \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/vllm-cli /opt/vllm-cli

# Some platforms choose the user themselves, but give it the group 0.
RUN mkdir -p /cache && chgrp 0 /cache && chmod 2775 /cache
ENV PATH=/opt/vllm-cli/bin:$PATH \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    XDG_RUNTIME_DIR=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /cache
WORKDIR /cache
USER 10001:0
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["vllm-cli", "wait", "--quiet", "--timeout", "4"]
ENTRYPOINT ["vllm-cli", "serve"]
