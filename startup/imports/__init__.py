"""Everything that changes how modules are imported. Begin reading with `finder.py`."""
