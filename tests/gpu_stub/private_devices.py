"""Gives a process tree its own /dev, with the devices that the router and the embedded engine look for."""

import os
from typing import Final

import pytest

_SCRIPT: Final = """set -e
new=$(mktemp -d); old=$(mktemp -d)
mount --make-rprivate /
mount --rbind /dev $old
mount -t tmpfs none $new
for name in $(ls -A $old); do
  if [ -h $old/$name ]; then cp -P $old/$name $new/$name; continue; fi
  if [ -d $old/$name ]; then mkdir $new/$name; else touch $new/$name; fi
  mount --rbind $old/$name $new/$name
done
touch $new/nvidiactl $new/nvidia0
mount --rbind $new /dev
umount -l $new $old
rmdir $new $old
exec "$@"
"""
PREFIX: Final = ("unshare", "--mount", "sh", "-c", _SCRIPT, "sh")
"""A launcher that executes the words after it with this /dev."""
needs_root: Final = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount namespace")
