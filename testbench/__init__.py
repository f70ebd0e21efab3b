"""Tests of the hardware, the firmware and the tools; installed in development only."""
