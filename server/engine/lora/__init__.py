"""LoRA adapters: read `adapters`, then `layers`."""
