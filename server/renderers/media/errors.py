"""What is wrong with a picture that a request names."""

from server.errors import ServerError


class MediaError(ServerError):
    """A picture cannot be had, or is none; the message is fit for a client and completes "messages[0]...: "."""
