"""Prints a streamed answer and measures it."""

import sys
import time
from collections.abc import Iterable

import click

from startup.logs.formatters import escape_controls
from vllm_cli.client.api_client import Piece


class Answer:
    """One streamed answer; `text` is the part received so far."""

    def __init__(self) -> None:
        self.text = ""
        self._num_tokens = 0
        self._start_ns = time.perf_counter_ns()
        self._first_ns: int | None = None
        self._end_ns: int | None = None

    def write(self, pieces: Iterable[Piece]) -> None:
        """Prints piece by piece; ends the line even after Ctrl-C or an error.

        Control characters are escaped on a terminal; files and pipes get the text unchanged.
        """
        is_terminal = sys.stdout.isatty()
        try:
            for piece in pieces:
                self._num_tokens = piece.num_tokens or self._num_tokens
                if piece.text:
                    self._first_ns = self._first_ns or time.perf_counter_ns()
                    self.text += piece.text
                    click.echo(escape_controls(piece.text) if is_terminal else piece.text, nl=False)
        finally:
            self._end_ns = time.perf_counter_ns()
            if self.text:
                click.echo()

    def stats(self) -> str:
        """Time to first token and tokens per second, of the whole request."""
        if self._first_ns is None or self._end_ns is None:
            return "No token was received."
        total_s = (self._end_ns - self._start_ns) / 1e9
        ttft_ms = (self._first_ns - self._start_ns) / 1e6
        rate = self._num_tokens / total_s
        return f"TTFT: {ttft_ms:.2f} ms\nTPS: {rate:.2f} tokens/s ({self._num_tokens} tokens in {total_s:.2f} s)"
