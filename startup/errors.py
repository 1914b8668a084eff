"""Errors of the start-up, translated once into exit code 3 by the command line."""


class StartupError(Exception):
    """The server cannot start; the message is one line that names the value and the fix."""


class ModelNotFoundError(StartupError):
    """The model is neither a readable folder nor to be had from the hub."""


class PortInUseError(StartupError):
    """Another process listens on the address."""


class EngineBootError(StartupError):
    """The engine process ended or ran out of time before it was ready."""
