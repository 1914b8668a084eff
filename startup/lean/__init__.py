"""Lean imports: torch, transformers and the engine with stand-ins for modules that serving never uses."""
