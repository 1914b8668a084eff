"""The version is a constant: reading the installed metadata takes longer than the rest of `--version`."""

VERSION = "0.5.0"
