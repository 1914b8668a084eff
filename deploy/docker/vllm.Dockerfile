# vLLM's image with a release of vllm-cli: `vllm serve` then starts vllm-cli.
#
#   docker build -f vllm.Dockerfile --build-arg WHEEL_SHA256=... -t vllm-with-vllm-cli dist
#
# `dist` is the folder that `make release` writes. Its SHA256SUMS has the hash of the wheel.

ARG VLLM=v0.33.0
FROM vllm/vllm-openai:${VLLM}
ARG WHEEL_SHA256
COPY *.whl /opt/vllm-cli/
RUN echo "${WHEEL_SHA256}  $(echo /opt/vllm-cli/*.whl)" | sha256sum --check --quiet && \
    pip install --no-index /opt/vllm-cli/*.whl && ln -sf "$(command -v vllm-cli)" "$(command -v vllm)"
