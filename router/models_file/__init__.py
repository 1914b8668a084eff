"""The file of `vllm-cli serve --models`: what it says, and its faults. Begin with `reader.py`."""
