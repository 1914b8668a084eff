"""Errors about environment variables; the command line turns them into one line and exit code 2."""


class EnvError(ValueError):
    """A variable has a value that is not allowed."""

    def __init__(self, name: str, shown_value: str, expected: str, *, hint: str = "") -> None:
        super().__init__(f"{name} must be {expected}, got {shown_value!r}{hint}")
        self.name = name
