"""Parts of the KV cache: page pool and tree of prefixes."""
