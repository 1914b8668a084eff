"""The words of `vllm serve` and the file of `--config`, read once: begin with `command_line.py`."""
