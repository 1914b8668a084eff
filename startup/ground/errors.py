"""Errors of a start; the command line translates them into exit code 3."""


class StartupError(Exception):
    """The server cannot start; the message names the value and the fix."""


class CommandLineError(StartupError):
    """The engine refuses words of its command line, or this Python; exit code 2."""


class ModelNotFoundError(StartupError):
    """The model is neither a readable folder nor available from the hub."""


class PortInUseError(StartupError):
    """Another process listens on the address."""


class CrashError(StartupError):
    """A process of the server has failed, during the start or later; the message is the crash digest."""

    def __init__(self, message: str, *, exit_code: int, json_line: str | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.json_line = json_line
        """The digest as a JSON line, for a log in JSON."""
