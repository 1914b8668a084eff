"""Reads the words of `serve` for a router: the router's flags, the models, and each model's words."""
