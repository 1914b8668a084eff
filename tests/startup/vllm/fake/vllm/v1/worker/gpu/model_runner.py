"""Runs models on a GPU."""
