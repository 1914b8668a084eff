"""The errors of images that cannot be loaded."""

from base.errors import ServerError


class MediaError(ServerError):
    """An image cannot be loaded or decoded; the message goes to the client, after "messages[0]...: "."""


class MediaTooLargeError(MediaError):
    """An image file is larger than the operator allows."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"the image is larger than {max_bytes} bytes (VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB)")
