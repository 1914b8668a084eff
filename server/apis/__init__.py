"""One folder or file per API, with its bodies and its serving. The routes: `server/http/routes/table.py`."""
