"""Turns text into token ids and back: `renderer.py`, and `vision.py` for models with images.

`tokenizers` loads and runs the tokenizer; `images` and `embeds` load what else a prompt may hold.
"""
