"""Formal proofs: contracts of queues and arbiters."""
