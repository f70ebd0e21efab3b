"""The hardware: an attention and KV-cache core in Amaranth."""
