"""In an installed wheel, contains base, envs, router, server and startup. See vllm_cli/own_packages.py."""
