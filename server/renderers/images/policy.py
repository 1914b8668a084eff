"""The operator's settings for loading images: allowed sources and limits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server.config import RendererConfig


@dataclass(frozen=True, kw_only=True)
class MediaPolicy:
    """Bounds everything that a request's image can make the server do."""

    local_folder: Path | None = None
    """Real path of the folder below which files may be read; None allows no files."""
    domains: frozenset[str] = frozenset()
    """Lower-case host names from which images may be fetched; empty allows none."""
    fetch_timeout_s: float = 5.0
    """Time limit for one image, redirects included."""
    follows_redirects: bool = True
    max_bytes: int = 256 << 20
    max_pixels: int = 178_956_970

    @classmethod
    def from_config(cls, config: RendererConfig) -> Self:
        """The policy that flags and variables set."""
        folder = config.allowed_local_media_path
        return cls(
            local_folder=None if folder is None else Path(folder).resolve(),
            domains=frozenset(domain.lower().rstrip(".").strip("[]") for domain in config.allowed_media_domains),
            fetch_timeout_s=config.image_fetch_timeout_s,
            follows_redirects=config.media_url_allow_redirects,
            max_bytes=config.max_media_bytes,
            max_pixels=config.max_image_pixels,
        )
