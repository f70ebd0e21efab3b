"""Tests of the attention engine."""
