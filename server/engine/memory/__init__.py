"""The KV cache. Read `cache_manager`, then `kv_cache`. `shared_slots` lets prompts share memory."""
