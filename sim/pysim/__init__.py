"""The core in the Amaranth simulator."""
