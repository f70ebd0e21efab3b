"""cocotb on the generated Verilog: builds, runs, the core as a device."""
