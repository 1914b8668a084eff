"""What the HTTP server knows of an engine."""


class EngineClient:
    errored = False
