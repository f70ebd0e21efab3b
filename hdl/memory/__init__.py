"""Memory port: SRAM wrapper, queues, AXI4, arbiters."""
