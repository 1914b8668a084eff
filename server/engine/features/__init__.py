"""Prompts with images or embeddings: read `prompt_features`, then `vision`."""
