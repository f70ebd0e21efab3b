"""Verilog of the core: generation, merging of identical modules, and the files that go with it."""

from m890.hdl.verilog.generate import ModuleInfo, Port, VerilogDesign, generate

__all__ = ["ModuleInfo", "Port", "VerilogDesign", "generate"]
