"""Parts of the KV cache: the tree of prefixes."""
