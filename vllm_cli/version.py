"""The version as a constant: asking the installed metadata would cost more than the rest of `--version`."""

VERSION = "0.1.0"
