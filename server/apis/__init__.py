"""The APIs. Each API has a folder or a file, with its request bodies and the class that serves it.

`server/http/routes/table.py` has the routes. A method that serves a route finds all faults of a request
before the first event of its stream. It raises RequestError if the request is invalid or does not fit the
model, and EngineError if the engine fails. After the first event, an error becomes an event of the stream.
"""
