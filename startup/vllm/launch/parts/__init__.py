"""The parts of a start of vLLM, each with what it does at each moment. `launch/start.py` has their order."""
