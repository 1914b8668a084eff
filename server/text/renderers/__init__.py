"""Turns text into token ids and back.

Begin with `renderer.py`. `tokenizers` loads and runs Hugging Face's tokenizers. `images` loads the images of
prompts.
"""
