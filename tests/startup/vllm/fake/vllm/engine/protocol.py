"""The interface of an engine for the HTTP server."""


class EngineClient:
    errored = False
