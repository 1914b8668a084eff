"""The front of `vllm-cli serve --idle-stop`, which starts the server on request. Begin with `front.py`."""
