"""The native device: Verilated RTL with its memory in one process."""
