"""Loads an image's bytes from its URL: `data:`, `file:`, `http:` or `https:`."""

from concurrent.futures import Executor
from functools import partial

from server.renderers.make_async import make_async
from server.renderers.media.data_url import decode_data_url
from server.renderers.media.fetcher import MediaFetcher
from server.renderers.media.local_file import read_file_url
from server.renderers.media.policy import MediaPolicy


class MediaLoader:
    """Fetches over HTTP on the event loop; decodes `data:` URLs and reads files in `executor`."""

    def __init__(self, policy: MediaPolicy, executor: Executor) -> None:
        self._policy = policy
        self._fetcher = MediaFetcher(policy)
        self._executor = executor

    async def load(self, url: str) -> bytes:
        """The image's bytes, unchecked.

        Raises:
            MediaError: the URL is malformed or not allowed, or loading fails.
        """
        scheme = url[:5].lower()
        if scheme == "data:":
            read = partial(decode_data_url, url, max_bytes=self._policy.max_bytes)
        elif scheme == "file:":
            read = partial(read_file_url, url, self._policy.local_folder, max_bytes=self._policy.max_bytes)
        else:
            return await self._fetcher.fetch(url)
        return await make_async(read, self._executor)()
