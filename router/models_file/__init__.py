"""Reads the file of `vllm-cli serve --models` and finds its faults. `reader.py` is the entry point."""
