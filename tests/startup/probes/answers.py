"""Answers of a responder in tests."""

from startup.probes.probe_http import Answer

STARTING = b'{"status":"starting"}'


class Answers:
    """Answers of a responder: 200 to /livez, 503 with the last message to all else."""

    def __init__(self, body: bytes = STARTING) -> None:
        self._body = body

    def answer(self, path: str) -> Answer:
        return Answer(200) if path == "/livez" else Answer(503, self._body, retry_after_s=1)

    def follow(self, message: bytes) -> None:
        self._body = message
