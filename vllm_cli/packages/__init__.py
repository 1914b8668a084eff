"""An installed wheel has base, envs, router, server and startup here; see vllm_cli/own_packages.py."""
