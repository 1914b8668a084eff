"""Where images may come from and how large they may be: the operator's word, told once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server.config import RendererConfig


@dataclass(frozen=True, kw_only=True)
class MediaPolicy:
    """Bounds of everything that a request's image can make the server do."""

    local_folder: Path | None = None
    """Real path; only files below it are read."""
    domains: frozenset[str] = frozenset()
    """Host names, in lower case, that images are fetched from; none, unless the operator names them."""
    fetch_timeout_s: float = 5.0
    """For an image, redirects included."""
    follows_redirects: bool = True
    max_bytes: int = 256 << 20
    max_pixels: int = 178_956_970

    @classmethod
    def from_config(cls, config: RendererConfig) -> Self:
        """The bounds that flags and variables set."""
        folder = config.allowed_local_media_path
        return cls(
            local_folder=None if folder is None else Path(folder).resolve(),
            domains=frozenset(domain.lower().rstrip(".").strip("[]") for domain in config.allowed_media_domains),
            fetch_timeout_s=config.image_fetch_timeout_s,
            follows_redirects=config.media_url_allow_redirects,
            max_bytes=config.max_media_bytes,
            max_pixels=config.max_image_pixels,
        )
