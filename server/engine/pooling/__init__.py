"""Pooling models, which compute embeddings, scores and classes. Read `core`, then `heads`."""
