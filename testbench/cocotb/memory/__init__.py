"""cocotb tests of `m890.hdl.memory`."""
