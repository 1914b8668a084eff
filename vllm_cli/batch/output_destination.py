"""The destination of the results: a file, or a URL to which the finished file is uploaded."""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from vllm_cli.batch.config import BatchConfig
from vllm_cli.errors import ConnectionFailedError, InputError

_URLS: Final = ("http://", "https://")
_TIMEOUT_S: Final = 1000
_PAUSES_S: Final = (1, 2, 4, 8)


class OutputDestination:
    """The destination; results are appended to the file `path`."""

    def __init__(self, path: Path, url: str | None = None, stack: ExitStack | None = None) -> None:
        self.path = path
        self._url = url
        self._stack = stack or ExitStack()

    @classmethod
    def of(cls, config: BatchConfig) -> "OutputDestination":
        """For a URL, the file is in --output-tmp-dir (for a second run), or in a temporary folder."""
        if not config.output_file.startswith(_URLS):
            path = Path(config.output_file)
            if config.output_file in ("", "-") or (path.exists() and not path.is_file()):
                message = "must be a file, so that a second run can continue it."
                raise InputError(f"--output-file {config.output_file!r} {message}")
            return cls(path)
        stack = ExitStack()
        folder = config.output_tmp_dir or Path(stack.enter_context(TemporaryDirectory(prefix="vllm-cli-batch-")))
        name = hashlib.sha256(f"{config.input_file}\n{config.output_file}".encode()).hexdigest()[:16]
        return cls(folder / f"run-batch-{name}.jsonl", config.output_file, stack)

    def deliver(self) -> None:
        """Uploads the file to the URL, if there is one, and removes it.

        Raises:
            ConnectionFailedError: the server does not accept it; the file stays.
        """
        if self._url is None:
            return
        for pause_s in (*_PAUSES_S, None):
            try:
                self._put(self._url)
                self.path.unlink()
                return
            except urllib.error.HTTPError as err:
                if pause_s is None or err.code < 500:
                    raise ConnectionFailedError(f"{self._url} answers {err.code} to the results.") from err
            except (http.client.HTTPException, OSError) as err:
                if pause_s is None:
                    reason = getattr(err, "reason", err)
                    raise ConnectionFailedError(f"{self._url} does not take the results ({reason}).") from err
            time.sleep(pause_s)

    def close(self) -> None:
        """Removes the temporary folder."""
        self._stack.close()

    def _put(self, url: str) -> None:
        with self.path.open("rb") as file:
            headers = {"Content-Length": str(self.path.stat().st_size), "Content-Type": "application/jsonl"}
            request = urllib.request.Request(url, data=file, headers=headers, method="PUT")
            urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
