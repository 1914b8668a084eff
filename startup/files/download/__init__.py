"""Downloads a model from the hub in a helper process. Begin with `process.py`, then read `worker.py`."""
