"""The logs of this program's processes. Begin reading with `setup.py`."""
