"""Imported by a subcommand other than `serve`."""
