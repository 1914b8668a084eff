"""From logits to the next token: read `sampler`, then `drawing`; `guided` applies grammars."""
