"""KV cache: segment walk, translation, page fetch, transposer, append."""
