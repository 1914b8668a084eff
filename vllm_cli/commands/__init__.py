"""One module per command; main.py lists them."""
