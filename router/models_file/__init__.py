"""Reads the file of `vllm-cli serve --models` and finds its faults. Begin with `reader.py`."""
