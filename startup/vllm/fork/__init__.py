"""The forkserver that imports vLLM and forks its processes. A reader begins with `forkserver.py`."""
