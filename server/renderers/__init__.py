"""Turns text into token ids and back. `registry.py` chooses a model's renderer, `base.py` is its interface.

`tokenizers` reads the formats of tokenizer files; `images` and `embeds` load what else a prompt may hold.
"""
