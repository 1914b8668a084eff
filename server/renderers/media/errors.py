"""What is wrong with an image that a request names."""

from server.errors import ServerError


class MediaError(ServerError):
    """An image cannot be had, or is none; the message is fit for a client and completes "messages[0]...: "."""
