"""Tests of the simulators, the command line and the tools around them."""
