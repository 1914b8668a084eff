"""One folder or file per API, with its bodies beside its serving. Routes: `server/http/routes/table.py`."""
