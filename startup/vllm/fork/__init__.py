"""The forkserver, which imports vLLM and forks vLLM's processes. Begin with `forkserver.py`."""
