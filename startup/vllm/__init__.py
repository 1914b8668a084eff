"""The start of an installed vLLM. Begin with `launch/start.py`."""
