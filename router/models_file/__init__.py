"""The file of `vllm-cli serve --models`: its content and its faults. Begin with `reader.py`."""
