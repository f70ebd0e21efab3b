"""Tests of `m890.hdl.memory`."""
