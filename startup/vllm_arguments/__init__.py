"""Reads the command line of `vllm serve` and the file of `--config` once. Begin with `vllm_line.py`."""
