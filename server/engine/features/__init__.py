"""Prompts with images or embeddings. Read `prompt_features`, then `vision`."""
