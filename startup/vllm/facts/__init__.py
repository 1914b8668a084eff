"""What the installed vLLM accepts, read from its sources without an import: begin with installed_facts.py."""
