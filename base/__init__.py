"""Code about machine, settings, errors and keys, which launcher, router and embedded engine share."""
