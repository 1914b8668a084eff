"""A client that reads a streamed completion."""

import json
import threading
import urllib.request
from typing import Any

_STREAM_S = 200.0


class StreamReader:
    """Waits for the first event, then reads the rest in a thread."""

    def __init__(self, url: str, max_tokens: int, *, key: str = "none") -> None:
        body = {"prompt": "Once", "max_tokens": max_tokens, "ignore_eos": True, "stream": True, "temperature": 0}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
        self.response = urllib.request.urlopen(request, timeout=_STREAM_S)
        self.lines = [self.response.readline()]
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with self.response:
            self.lines += self.response.readlines()

    def finish(self) -> list[Any]:
        """Waits for the end of the stream; all events, None for `[DONE]`."""
        self._thread.join(_STREAM_S)
        assert not self._thread.is_alive()
        events = [line[6:].strip() for line in self.lines if line.startswith(b"data: ")]
        return [json.loads(e) if e != b"[DONE]" else None for e in events]
