"""Everything that changes how modules are imported. A reader begins with `finder.py`."""
