"""The place of base, envs, router, server and startup in an installed wheel. See vllm_cli/own_packages.py."""
