"""Code that launcher, router and embedded engine share: the machine, settings, errors, keys, formatting."""
