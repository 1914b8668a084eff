"""What the words of `serve` say to a router: its own flags, the models, and what each of them gets."""
