"""Downloads a model in a helper process. Begin with `process.py`, then read `worker.py`."""
