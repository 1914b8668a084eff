"""Reads the words of `serve` for a router: its own flags, the models, and the words of each model."""
