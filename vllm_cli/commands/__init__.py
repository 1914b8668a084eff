"""One module per command. The table in `main.py` lists them."""
