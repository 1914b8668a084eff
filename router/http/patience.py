"""How long a relayed request waits for clients and servers."""

from typing import NamedTuple


class Patience(NamedTuple):
    """The limits in seconds, which tests shorten."""

    comment_s: float = 1.0
    """Between two comments in a stream whose model starts."""
    stall_s: float = 30.0
    """How long a client may read nothing, and a WebSocket be silent, while others wait for the memory."""
    close_s: float = 2.0
    """How long the end of a WebSocket may take."""
    follow_s: float = 1.0
    """Between two looks at a response in the background."""
    unread_s: float = 120.0
    """How long such a response that has ended is kept for its client."""
