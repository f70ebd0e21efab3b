"""Tests of the firmware: driver, KV cache, planner, models and agents."""
