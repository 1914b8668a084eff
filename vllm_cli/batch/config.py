"""What one run of `run-batch` is asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllm_cli.client.server_address import ServerAddress

OWN_SERVER_CONCURRENCY: Final = 256
"""More than the engine runs at once, so that it never waits for the next request."""
OTHER_SERVER_CONCURRENCY: Final = 32


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The files, the server, and how requests are sent to it."""

    input_file: str
    """A path, `-` for standard input, or an http(s) URL."""
    output_file: str
    """A path, or an http(s) URL that takes PUT."""
    output_tmp_dir: Path | None = None
    """Where the results of an output URL are kept until they are sent there."""
    address: ServerAddress | None = None
    """A running server; None starts one."""
    serve_words: tuple[str, ...] = ()
    """MODEL and flags of the server that is started."""
    model: str | None = None
    """For requests to a running server that name no model."""
    api_key: str | None = None
    max_concurrency: int | None = None
    retry_timeout_s: float = 600.0
    """How long one request is sent again and again."""
    request_timeout_s: float | None = None
    is_overwriting: bool = False
    retries_failed: bool = False
    """Ask again what an earlier run has noted as failed."""
    fails_on_error: bool = False
    """Tell by the exit code that requests have failed."""
    is_quiet: bool = False

    @property
    def num_in_flight(self) -> int:
        """Most requests that wait for their answers at once."""
        if self.max_concurrency is not None:
            return self.max_concurrency
        return OTHER_SERVER_CONCURRENCY if self.address else OWN_SERVER_CONCURRENCY
