"""Synthesis of the generated Verilog with open tools: counts of every block, and its Fmax on ECP5.

netlists = yosys.synthesise(design, "row", yosys.ECP5, say)   # the block and all below it
counts = yosys.total(design, "row", netlists)                 # LUTs, flip-flops, DSPs, ...
timing = place.place(design, "row", netlists, say)            # Fmax and the critical path
"""
