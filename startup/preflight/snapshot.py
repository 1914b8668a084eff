"""Checks a snapshot in the hub's cache for links without a file and for incomplete blobs."""

from collections.abc import Iterator
from pathlib import Path

from server.wording import format_bytes, list_some
from startup.preflight.report import Finding, error, info


def dangling_links(snapshot: Path) -> list[str]:
    """Files of the snapshot whose blob does not exist."""
    try:
        return sorted(path.name for path in snapshot.iterdir() if path.is_symlink() and not path.exists())
    except OSError:
        return []


def snapshot_findings(snapshot: Path, *, will_download: bool) -> Iterator[Finding]:
    """Faults of a cached snapshot; only information if a download will fix them."""
    report = info if will_download else error
    if links := dangling_links(snapshot):
        advice = "they are downloaded now" if will_download else "download the model again"
        yield report("download", f"{snapshot} lacks the content of {list_some(links)}: {advice}")
    blobs = snapshot.parent.parent / "blobs"
    if parts := list(blobs.glob("*.incomplete")):
        # The hub's client keeps only complete files; it downloads the others from the beginning.
        what = f"{len(parts)} unfinished files ({format_bytes(sum(map(_size, parts)))})"
        yield info("download", f"{blobs} has {what} of a download that was killed: they may be deleted")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
