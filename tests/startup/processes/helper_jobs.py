"""A job for the tests of helper processes."""

from startup.processes.helper import Send


def run(code: str, send: Send) -> None:
    """Runs the test's own code."""
    exec(code, {"code": code, "send": send})
