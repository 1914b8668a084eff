"""A root file system of its own, as a container has: this machine's files, and changes in memory."""

import subprocess
from pathlib import Path

_SCRIPT = """
mount --make-rprivate / || exit 1
mount -t overlay overlay -o "lowerdir=/,upperdir=$0/upper,workdir=$0/work" "$0/root" || exit 1
for name in proc sys dev; do mount --rbind "/$name" "$0/root/$name" || exit 1; done
if [ -n "$1" ]; then mount --bind "$1" "$0/root$1" && mount -o remount,bind,ro "$0/root$1" || exit 1; fi
folder=$PWD
shift
exec chroot "$0/root" env -C "$folder" "$@"
"""


def overlay_root(folder: Path, read_only: Path | None = None) -> tuple[str, ...] | None:
    """A launcher whose programs see a new root and write to `folder/upper`; None if it does not work.

    Args:
        folder: empty, on a file system in memory.
        read_only: a folder that cannot be written to in the new root.
    """
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(mode=0o755)
    command = ("unshare", "--mount", "sh", "-c", _SCRIPT, str(folder), str(read_only or ""))
    try:
        works = subprocess.run([*command, "true"], capture_output=True, timeout=60).returncode == 0
    except FileNotFoundError:
        return None
    return command if works else None
