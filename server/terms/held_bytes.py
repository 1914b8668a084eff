"""Counts the bytes that all requests of a server hold, for the limit `--http-max-held-size`."""

from functools import cached_property

from base.machine.memory import available_bytes

_MEMORY_SHARE = 8
"""By default, requests may hold an eighth of the free memory."""
_LEAST_HELD_BYTES = 256 << 20


class HeldBytes:
    """The counters of one server. Used on the event loop."""

    def __init__(self, given: int | None = None) -> None:
        """`given` is the limit. None for the default."""
        self._given = given
        self.num_admitted = 0
        """Bytes of received and announced bodies, and of tensors in prompts."""
        self.num_waiting = 0
        """Bytes of requests that wait behind a running one on their connection."""

    @cached_property
    def most(self) -> int:
        """The limit. The default is computed when it is first needed, with the model loaded."""
        if self._given is not None:
            return self._given
        return max(_LEAST_HELD_BYTES, available_bytes() // _MEMORY_SHARE)

    def count_waiting(self, num_bytes: int) -> None:
        """Adds bytes that wait behind a running request. A negative number subtracts them."""
        self.num_waiting += num_bytes

    def is_waiting_full(self, num_own: int) -> bool:
        """Whether a connection must drop its `num_own` waiting bytes. The only such connection need not."""
        return 0 < num_own < self.num_waiting and self.num_waiting > self.most
