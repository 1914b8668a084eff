"""Triton's kernels: which a start of vLLM needs, and their compilation. Begin with `compiling.py`."""
