"""Probe answers of a start that a responder never gives itself."""

from startup.probes.answer import Answer


class NoAnswers:
    """Implements `startup.probes.answer.Answers`: always 503."""

    def answer(self, path: str) -> Answer:
        return Answer(503)

    def follow(self, message: bytes) -> None:
        pass
