"""Turns text into token ids and back.

`base.py` has the base class, and `hf.py` has the renderer. `tokenizers` loads and
runs Hugging Face's tokenizers. `images` and `embeds` load the images and embeddings of prompts.
"""
