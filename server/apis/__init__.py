"""One folder per API, with its bodies beside its serving. Routes: `server/routes/table.py`."""
