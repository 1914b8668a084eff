"""Health probes while vLLM serves. A reader begins with `serving_events.py`."""
