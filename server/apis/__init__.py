"""The APIs. Each API has a folder or file, with its request bodies and with the class that serves it.

`server/http/routes/table.py` has the routes.
"""
