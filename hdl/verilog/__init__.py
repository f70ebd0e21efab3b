"""Verilog of the core: generation, merging of identical modules, and the files that go with it."""

from m890.hdl.verilog.design import ModuleInfo, Port, VerilogDesign
from m890.hdl.verilog.emit import emit
from m890.hdl.verilog.generate import generate

__all__ = ["ModuleInfo", "Port", "VerilogDesign", "emit", "generate"]
