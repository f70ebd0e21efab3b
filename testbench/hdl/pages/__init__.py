"""Tests of `m890.hdl.pages`."""
