"""What the installed vLLM accepts, read from its sources without an import: begin with vllm_facts.py."""
