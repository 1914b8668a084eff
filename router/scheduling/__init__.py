"""Which models run and which requests they get: begin with `scheduler.py`."""
