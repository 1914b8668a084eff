"""In an installed wheel, the packages base, envs, server and startup; see vllm_cli/own_packages.py."""
