"""Downloads a model in a helper process. Begin with `download_process.py`, then read `worker.py`."""
