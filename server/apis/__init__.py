"""The APIs. Each API has a folder or a file, with its request bodies and the class that serves it.

`server/http/routes/table.py` has the routes.
"""
