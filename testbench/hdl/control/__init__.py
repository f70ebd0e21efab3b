"""Tests of `m890.hdl.control`."""
