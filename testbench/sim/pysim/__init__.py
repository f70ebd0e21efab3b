"""Tests of `m890.sim.pysim`."""
