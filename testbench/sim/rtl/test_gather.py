"""The native simulator's form of the Verilog: what moves into a process, and what must not."""

import re

from m890.hdl.config import preset
from m890.sim.rtl.cache import core_design
from m890.sim.rtl.flatten import MODULE as ANY_MODULE
from m890.sim.rtl.flatten import flatten
from m890.sim.rtl.gather import gather, prepare, whole_words

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

PLAIN = """\
    if (wake) begin
      o <= both + parts;
    end
  end
  always @(posedge clk) begin
    other"""


def _process(text: str) -> str:
    return text[text.index("    if (wake) begin") :]


def test_logic_of_one_condition_moves_there_sources_first() -> None:
    text = gather(MODULE)
    process = _process(text)
    places = [process.index(f"      {name} = ") for name in ("inner", "double", "chosen")]
    assert places == sorted(places)
    assert "assign double" not in text and "assign inner" not in text
    assert "      if (a[0]) begin" in process  # a whole process of a signal moves too
    assert re.search(r"^  reg \[7:0\] double;$", text, re.M)


def test_what_others_read_stays_where_it_is() -> None:
    text = gather(MODULE)
    for statement in ("assign both = ", "assign seen = "):
        assert f"  {statement}" in text
    assert re.search(r"^  wire \[7:0\] both;$", text, re.M)


def test_a_signal_moves_in_all_its_parts() -> None:
    half = "  always @* begin\n    if (_at_start) ;\n    {0} = a[{1}];\n  end\n"
    parts = half.format("inner[3:0]", "3:0") + half.format("inner[7:4]", "7:4")
    text = gather(MODULE.replace("  assign inner = a ^ 8'h0f;\n", parts))
    process = _process(text)
    places = [process.index(f"      {name} = ") for name in ("inner[3:0]", "inner[7:4]", "double")]
    assert places == sorted(places)
    assert text.count("inner[3:0] = ") == text.count("parts[3:0] = ") == 1


def test_logic_of_two_conditions_stays() -> None:
    second = "    if (a[1]) begin\n      other <= inner;\n    end\n  end\n"
    text = gather(MODULE.replace("    other <= both;\n  end\n", second))
    assert "  assign inner = " in text
    assert "      double = " in _process(text)


def test_reset_and_registers_without_one_keep_their_meaning() -> None:
    text = gather(MODULE.replace("      o <= both + parts;\n", "").replace("    other", PLAIN))
    process = _process(text)
    start, middle = process.index("      o <= both"), process.index("      if (rst) begin")
    assert start < middle < process.index("      held <= chosen;")  # `o` is stored in reset, too
    assert process.index("    end else if (rst) begin") > process.index("      held <= chosen;")


def test_what_only_one_conditions_registers_feed_waits_for_them() -> None:
    """`above` and so on change in the cycle after `wake` only."""
    names = ("above", "below", "left", "right", "front", "back")
    wires = "".join(f"  wire [7:0] {name};\n" for name in names)
    logic = "".join(
        f"  assign {name} = {before} + 8'h0{n};\n"
        for n, (name, before) in enumerate(zip(names, ("held", *names), strict=False))
    )
    text = MODULE.replace("  reg [7:0] held", f"{wires}{logic}  reg [7:0] held")
    text = gather(text.replace("other <= both", "other <= both + back"))
    assert re.search(r"always @\(posedge clk\) stirred_0 <= rst \| \(wake\);", text)
    block = text[text.index("    if (stirred_0) begin") :]
    places = [block.index(f"        {name} = ") for name in names]
    assert places == sorted(places) and "  reg stirred_0 = 1'h1;" in text


def test_statements_with_conditions_of_their_own_are_told_apart() -> None:
    memory = "    if (a[1])\n      words[a] <= both;\n"
    memory += "    if (a[2]) begin\n      other <= both;\n    end\n"
    text = gather(MODULE.replace("    other <= both;\n", memory))
    assert "    if (a[1]) begin\n      words[a] <= both;" in text
    assert "    if (a[2]) begin\n      other <= both;" in text
    twice = memory.replace("words[a]", "other")  # in order, so they stay together
    text = gather(MODULE.replace("    other <= both;\n", twice))
    assert twice in text


HIERARCHY = """\
// two of a kind
module top(
  input wire clk,
  input wire rst,
  input wire [3:0] a,
  output wire [3:0] o
);
  wire [3:0] \\one.o ;
  inner one (
    .a(a),
    .clk(clk),
    .o(\\one.o ),
    .rst(rst)
  );
  inner two (
    .a(\\one.o ),
    .clk(clk),
    .o(o),
    .rst(rst)
  );
endmodule

// the kind
module inner(
  input wire clk,
  input wire rst,
  input wire [3:0] a,
  output reg [3:0] o = 4'h0
);
  wire \\end ;
  wire [3:0] a_end;
  assign \\end  = a == 4'hf;
  assign a_end = \\end  ? 4'ha : a;
  always @(posedge clk) begin
    if (rst) begin
      o <= 4'h0;
    end else begin
      o <= a_end;
    end
  end
endmodule
"""


def test_instances_are_written_out_and_copies_left_out() -> None:
    text = flatten(HIERARCHY, "top")
    assert text.count("module ") == 1 + text.count("endmodule") - 1
    for name in ("one", "two"):
        assert f"{name}$a_end = \\{name}$end  ? 4'ha : " in text
    assert "always @(posedge clk)" in text and "$clk" not in text and "$rst" not in text
    assert "? 4'ha : a;" in text  # the first one reads the port itself
    assert "? 4'ha : one$o;" in text  # the second one the first one's register, not a wire between
    assert re.search(r"^  assign o = two\$o;$", text, re.M)  # a port stays
    assert "\\one.o" not in text


def test_modules_that_stand_alone_stay_instances() -> None:
    text = flatten(HIERARCHY, "top", ["inner"])
    assert "  inner one (" in text and "module inner(" in text and "one$" not in text


MEMORY = """\
module unit(
  input wire clk,
  input wire [1:0] enable,
  input wire [7:0] data
);
  reg [7:0] words$memory [3:0];
  always @(posedge clk) begin
    if (enable[0])
      words$memory[data[1:0]][3:0] <= data[3:0];
    if (enable[1])
      words$memory[data[1:0]][7:4] <= data[7:4];
  end
endmodule
"""


def test_a_memory_written_in_parts_takes_the_whole_word() -> None:
    text = whole_words(MEMORY)
    assert text.count("<=") == 1
    assert "    if ((enable[0]) | (enable[1])) begin\n" in text
    high = "(enable[1]) ? data[7:4] : words$memory[data[1:0]][7:4]"
    low = "(enable[0]) ? data[3:0] : words$memory[data[1:0]][3:0]"
    assert f"      words$memory[data[1:0]] <= {{ {high}, {low} }};\n" in text


def test_parts_that_are_not_the_whole_word_stay() -> None:
    for changed in (
        MEMORY.replace("reg [7:0]", "reg [8:0]"),
        MEMORY.replace("data[1:0]][7:4]", "data[2:1]][7:4]"),
        MEMORY.replace("[7:4] <=", "[7:5] <="),
    ):
        assert whole_words(changed) == changed


def test_inputs_in_which_instances_differ_are_signals_of_their_own() -> None:
    """Else Verilator names what drives them, and writes every row's code anew."""
    text = prepare(core_design(preset("tiny")), everything_shows=False)
    modules = {m["name"]: m for m in ANY_MODULE.finditer(text.replace("); /*", ");\n/*"))}
    kept = "/*verilator public_flat_rw*/"
    differ = {"m890_row": ["p"], "m890_score": ["finished0", "finished1"]}
    for name, inputs in differ.items():
        ports = modules[name]["ports"]
        assert re.findall(rf"^  input wire .*?(\w+) {re.escape(kept)}", ports, re.M) == inputs
        assert "index$kept /*verilator public_flat_rd*/" in modules[name]["body"]
        assert modules[name]["body"].startswith("/*verilator no_inline_module*/")
    p = re.findall(r"^    \.p\((.*)\),?$", text, re.M)
    assert len(set(p)) == preset("tiny").score_units
    assert all(f"{wire} {kept};" in text for wire in p)
