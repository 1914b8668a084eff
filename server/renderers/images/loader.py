"""Loads an image's bytes from its URL: `data:`, `file:`, `http:` or `https:`."""

from concurrent.futures import Executor

from server.renderers.images.data_url import decode_data_url
from server.renderers.images.fetcher import MediaFetcher
from server.renderers.images.load_budget import LoadLease
from server.renderers.images.local_file import find_file, read_file
from server.renderers.images.policy import MediaPolicy
from server.renderers.pool import make_async


class MediaLoader:
    """Fetches over HTTP on the event loop; decodes `data:` URLs and reads files in `executor`."""

    def __init__(self, policy: MediaPolicy, executor: Executor) -> None:
        self._policy = policy
        self._fetcher = MediaFetcher(policy)
        self._executor = executor

    async def load(self, url: str, lease: LoadLease) -> bytes:
        """The image's bytes, unchecked; the lease takes room for them.

        Raises:
            MediaError: the URL is malformed or not allowed, or loading fails.
        """
        scheme, most = url[:5].lower(), self._policy.max_bytes
        if scheme == "data:":
            await lease.grow(min(len(url) * 3 // 4, most))
            return await make_async(decode_data_url, self._executor)(url, max_bytes=most)
        if scheme == "file:":
            file = await make_async(find_file, self._executor)(url, self._policy.local_folder)
            await lease.grow(min(file.num_bytes, most))
            return await make_async(read_file, self._executor)(file.path, max_bytes=most)
        return await self._fetcher.fetch(url, lease.grow)
