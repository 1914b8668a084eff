"""The APIs of pooling models: /v1/embeddings, /pooling, /classify, /score, /rerank.

Read `serving.py` first.
"""
