"""The native simulator's form of the Verilog: what moves into a process, and what must not."""

import re

from m890.sim.rtl.gather import gather

MODULE = """\
module unit(
  input wire clk,
  input wire rst,
  input wire wake,
  input wire [7:0] a,
  output reg [7:0] o = 8'h00,
  output wire [7:0] seen
);
  wire [7:0] double;
  wire [7:0] inner;
  wire [7:0] both;
  wire [7:0] parts;
  reg [7:0] held = 8'h00;
  reg [7:0] other = 8'h00;
  reg [7:0] chosen;
  reg _at_start;
  initial _at_start = 0;
  assign double = inner + inner;
  assign inner = a ^ 8'h0f;
  assign both = a + 8'h01;
  assign seen = held;
  assign parts[3:0] = a[3:0];
  assign parts[7:4] = a[7:4];
  always @* begin
    if (_at_start) ;
    chosen = double;
    if (a[0]) begin
      chosen = both;
    end
  end
  always @(posedge clk) begin
    if (rst) begin
      held <= 8'h00;
    end else if (wake) begin
      held <= chosen;
      o <= both + parts;
    end
  end
  always @(posedge clk) begin
    other <= both;
  end
endmodule
"""


def test_logic_of_one_condition_moves_there_sources_first() -> None:
    text = gather(MODULE)
    process = text[text.index("else if (wake)") :]
    places = [process.index(f"      {name} = ") for name in ("inner", "double", "chosen")]
    assert places == sorted(places)
    assert "assign double" not in text and "assign inner" not in text
    assert "      if (a[0]) begin" in process  # a whole process of a signal moves too
    assert re.search(r"^  reg \[7:0\] double;$", text, re.M)


def test_what_others_read_stays_where_it_is() -> None:
    text = gather(MODULE)
    for statement in ("assign both = ", "assign seen = ", "assign parts[3:0] = "):
        assert f"  {statement}" in text
    assert re.search(r"^  wire \[7:0\] both;$", text, re.M)


def test_a_signal_with_two_processes_stays() -> None:
    half = "  always @* begin\n    if (_at_start) ;\n    {0} = a[{1}];\n  end\n"
    parts = half.format("inner[3:0]", "3:0") + half.format("inner[7:4]", "7:4")
    text = gather(MODULE.replace("  assign inner = a ^ 8'h0f;\n", parts))
    process = text[text.index("else if (wake)") :]
    assert "inner[3:0] = " not in process and text.count("inner[3:0] = ") == 1
    assert "      double = " in process


def test_logic_of_two_conditions_stays() -> None:
    second = "    if (a[1]) begin\n      other <= inner;\n    end\n  end\n"
    text = gather(MODULE.replace("    other <= both;\n  end\n", second))
    assert "  assign inner = " in text
    assert "      double = " in text[text.index("else if (wake)") :]
