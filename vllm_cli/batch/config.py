"""Typed configuration of one run of `run-batch`; standard library only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vllm_cli.client.server import Server

OWN_SERVER_CONCURRENCY: Final = 256
"""More than the engine runs at once, so that it always has a waiting request."""
OTHER_SERVER_CONCURRENCY: Final = 32


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The files, the server, and how requests are sent to it."""

    input_file: str
    """A path, `-` for standard input, or an http(s) URL."""
    output_file: str
    """A path, or an http(s) URL that takes PUT."""
    output_tmp_dir: Path | None = None
    """The folder of the results for an output URL until they are uploaded."""
    server: Server | None = None
    """A running server; None starts one."""
    serve_words: tuple[str, ...] = ()
    """MODEL and flags of the started server."""
    model: str | None = None
    """The model of requests to a running server that name none."""
    max_concurrency: int | None = None
    retry_timeout_s: float = 600.0
    """How long one request is retried."""
    request_timeout_s: float | None = None
    is_overwriting: bool = False
    fails_on_error: bool = False
    """Whether failed requests change the exit code."""
    is_quiet: bool = False

    @property
    def has_output_url(self) -> bool:
        return self.output_file.startswith(("http://", "https://"))

    @property
    def num_in_flight(self) -> int:
        """The maximum of concurrent requests."""
        if self.max_concurrency is not None:
            return self.max_concurrency
        return OTHER_SERVER_CONCURRENCY if self.server else OWN_SERVER_CONCURRENCY
