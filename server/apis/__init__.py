"""One folder per API, with its bodies beside its serving. Routes: `server/http/routes/table.py`."""
