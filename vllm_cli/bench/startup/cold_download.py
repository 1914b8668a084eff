"""Starts whose model comes from a stand-in for the Hugging Face hub, with the transfer alone for comparison.

The stand-in is a program of its own, `python -m tools.hub` of the source tree: it has counters and a link of
a limited rate, which no real hub has.
"""

import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from msgspec import structs

from vllm_cli.bench.startup.results import StartFigures
from vllm_cli.errors import InputError

_NUM_CONNECTIONS: Final = 8
"""As many files at once as the hub's client downloads."""
_BUFFER_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 60.0


class HubStandIn:
    """The running stand-in; all methods block."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def check(self, link: str | None) -> None:
        """Sets the rate of its link, if one is given; raises InputError if there is no stand-in."""
        self._control("GET", "stats")
        if link is not None:
            self._control("POST", "link", {"rate": link})

    @contextmanager
    def empty_cache(self) -> Iterator[dict[str, str]]:
        """Variables for one start: this hub, and a temporary folder as its cache. Resets the counters."""
        self._control("DELETE", "stats")
        with tempfile.TemporaryDirectory(prefix="vllm-cli-bench-hub-") as folder:
            yield {
                "HF_ENDPOINT": self._url,
                "HF_HOME": folder,
                "HF_HUB_CACHE": str(Path(folder) / "hub"),
                "HF_HUB_OFFLINE": "0",
                "TRANSFORMERS_OFFLINE": "0",
            }

    def add_transfer(self, figures: StartFigures) -> StartFigures:
        """The figures, completed by what the start has downloaded, and by how long a plain download takes.

        Raises:
            InputError: the start has downloaded nothing.
        """
        stats = self._control("GET", "stats")
        if not stats["downloads"]:
            raise InputError(
                f"the server has downloaded nothing from --hub {self._url}: does its command name a model folder?"
            )
        begin_ns = time.monotonic_ns()
        with ThreadPoolExecutor(_NUM_CONNECTIONS, thread_name_prefix="plain-download") as pool:
            list(pool.map(self._read_file, stats["downloads"]))
        transfer_s = (time.monotonic_ns() - begin_ns) / 1e9
        return structs.replace(
            figures,
            transfer_s=transfer_s,
            transfer_ratio=figures.first_token_s / transfer_s,
            download_mb=stats["file_bytes"] / 1e6,
            hub_requests=stats["requests"],
        )

    def _read_file(self, name: str) -> None:
        """Reads `org/model/file` to its end and keeps nothing."""
        owner, model, file = name.split("/", 2)
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        with urlopen(f"{self._url}/{owner}/{model}/resolve/main/{quote(file)}", timeout=_TIMEOUT_S) as answer:
            while answer.readinto(buffer):
                pass

    def _control(self, method: str, path: str, body: dict[str, str] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self._url}/{path}", data, method=method)
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)
        except HTTPError as err:
            if err.code == 400:
                raise InputError(f"--{path}: {json.load(err)['error']}") from err
            raise self._missing(f"answers {err.code} to /{path}") from err
        except (OSError, ValueError) as err:
            raise self._missing(f"does not answer: {err}") from err

    def _missing(self, reason: str) -> InputError:
        start = "start one with `python -m tools.hub FOLDER` in a checkout of vllm-cli's source"
        return InputError(f"--hub: {self._url} is no stand-in for the hub, it {reason}; {start}")
