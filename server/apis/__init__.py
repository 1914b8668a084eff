"""The APIs. Each has a folder or file with its request bodies and its serving.

`server/http/routes/table.py` has the routes.
"""
