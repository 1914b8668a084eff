"""Downloads a model from the hub in a helper process; begin with process.py, then worker.py."""
