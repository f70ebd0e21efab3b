"""Attention engine: queries, row array, softmax, accumulators, output."""
