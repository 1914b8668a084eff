"""Implements `vllm-cli bake`. Begin with `bake.py`."""
