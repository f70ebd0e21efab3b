"""Firmware: driver, KV cache, planner, scheduler and agents."""
