"""Reads the words of `vllm serve` and the file of `--config` once. Begin with `command_line.py`."""
