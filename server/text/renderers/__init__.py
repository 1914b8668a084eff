"""Turns text into token ids and back: `base.py`, a file per kind, `vision.py` for images.

`tokenizers` loads and runs Hugging Face's tokenizers. `images` and `embeds` load other parts of a prompt.
"""
