"""The KV cache: read `cache_manager`, then `kv_cache`; `shared_slots` lets prompts share memory."""
