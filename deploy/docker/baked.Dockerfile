# A model in an image, with what `vllm-cli bake` keeps of one start.
#
#   docker build -f baked.Dockerfile --build-context model=/models/llama -t llama .
#   docker build -f baked.Dockerfile --build-context model=/models/llama --build-arg IMAGE=vllm-with-vllm-cli -t llama .
#   docker run -p 8000:8000 llama
#
# IMAGE is the embedded engine's (../../Dockerfile) or vLLM's with vllm-cli in it (vllm.Dockerfile). Give RUN and CMD
# the same flags. Bake last: a package that is installed later invalidates most of it (docs/fast-starts.md).

ARG IMAGE=vllm-cli
FROM ${IMAGE}
USER 0
COPY --from=model . /models/model
RUN vllm-cli bake /models/model --max-model-len 8192
# vLLM's own images run as root: leave this line out there.
USER 10001:0
CMD ["/models/model", "--max-model-len", "8192"]
