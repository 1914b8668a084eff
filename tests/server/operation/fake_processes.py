"""Fake processes of an engine, for tests of its watchdog."""


class FakeProcesses:
    """Implements `server.operation.engine_watchdog.EngineProcesses`."""

    def __init__(self) -> None:
        self.names_of_stopped: list[str] = []
        self.processor_s = 0.0
        self.num_stacks = 0
        self.reasons: list[str] = []
        """The reasons with which the processes were ended."""

    def stopped(self) -> list[str]:
        return self.names_of_stopped

    def computed_s(self, *, is_on_processor: bool) -> float:
        return self.processor_s if is_on_processor else 0.0

    async def read_stacks(self) -> str:
        self.num_stacks += 1
        return "the stacks"

    async def end(self, reason: str) -> None:
        self.reasons.append(reason)
