"""Chooses the next token from logits. Read `sampler`, then `drawing`. `guided` applies grammars."""
