"""Reads the arguments of `serve` for a router: the router's own flags, the models, and the models' flags."""
