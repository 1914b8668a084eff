"""The start of an installed vLLM. A reader begins with `launch/start.py`."""
