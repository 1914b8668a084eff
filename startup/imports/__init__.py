"""Changes how modules are imported. Begin reading with `finder.py`."""
