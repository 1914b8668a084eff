"""The error for images that cannot be loaded."""

from server.errors import ServerError


class MediaError(ServerError):
    """An image cannot be loaded or decoded; the message goes to the client, after "messages[0]...: "."""
