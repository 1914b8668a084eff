"""Health probes while vLLM serves. Begin with `serving_events.py`."""
