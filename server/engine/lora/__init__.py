"""LoRA adapters. Read `adapters`, then `layers`."""
