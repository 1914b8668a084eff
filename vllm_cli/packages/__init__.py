"""Packages of an installed wheel: base, envs, router, server and startup; see vllm_cli/own_packages.py."""
