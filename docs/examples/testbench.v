// The generated core in a plain Verilog testbench: clock, reset, memory, ring, one NOP, one ATTEND.
// Works with any simulator of Verilog-2005; see docs/verilog.md. Made for the preset tiny.
// SPDX-License-Identifier: Apache-2.0

module testbench;
  localparam integer PORT_BYTES = 16;          // 2 x lanes
  localparam integer BEATS = 8192;             // memory: 128 KiB
  localparam integer LATENCY = 20;             // cycles from address to first beat

  // Registers (m890_core.h, docs: Registers).
  localparam [11:0] IDENT = 12'h000, CONTROL = 12'h014, IRQ_ENABLE = 12'h01C, IRQ_STATUS = 12'h020,
      MEMORY_LIMIT_LO = 12'h024, RING_BASE_LO = 12'h02C, RING_SIZE = 12'h034, RING_TAIL = 12'h038,
      COMPLETION_BASE_LO = 12'h040, COMPLETION_SIZE = 12'h048, COMPLETION_TAIL = 12'h04C;
  // Where make_image.py puts things.
  localparam [31:0] RING = 32'h0000, COMPLETIONS = 32'h1000, OUTPUT = 32'h4000;
  localparam integer COMMANDS = 5;             // NOP, PLANE, COPY, CREATE, ATTEND
  localparam integer OUTPUT_BEATS = 8;

  // Clock: rising edge. Reset: synchronous, active high; a few cycles are enough.
  reg clk = 0, rst = 1;
  always #5 clk = ~clk;

  // ---------------------------------------------------------------- the core
  wire [3:0] awid, arid;
  wire [39:0] awaddr, araddr;
  wire [7:0] awlen, arlen;
  wire awvalid, arvalid, wlast, wvalid, bready, rready, irq;
  wire [127:0] wdata;
  wire [15:0] wstrb;
  reg awready = 0, wready = 0, bvalid = 0, rvalid = 0, rlast = 0;
  reg [3:0] bid = 0, rid = 0;
  reg [127:0] rdata = 0;

  reg [11:0] csr_awaddr = 0, csr_araddr = 0;
  reg [31:0] csr_wdata = 0;
  reg csr_awvalid = 0, csr_wvalid = 0, csr_arvalid = 0;
  wire csr_awready, csr_wready, csr_bvalid, csr_arready, csr_rvalid;
  wire [31:0] csr_rdata;
  wire [1:0] csr_bresp, csr_rresp;

  m890_core core (
    .clk(clk), .rst(rst), .irq(irq),
    .m_axi_awid(awid), .m_axi_awaddr(awaddr), .m_axi_awlen(awlen), .m_axi_awsize(),
    .m_axi_awburst(), .m_axi_awvalid(awvalid), .m_axi_awready(awready),
    .m_axi_wdata(wdata), .m_axi_wstrb(wstrb), .m_axi_wlast(wlast), .m_axi_wvalid(wvalid),
    .m_axi_wready(wready), .m_axi_bid(bid), .m_axi_bresp(2'b00), .m_axi_bvalid(bvalid),
    .m_axi_bready(bready), .m_axi_arid(arid), .m_axi_araddr(araddr), .m_axi_arlen(arlen),
    .m_axi_arsize(), .m_axi_arburst(), .m_axi_arvalid(arvalid), .m_axi_arready(1'b1),
    .m_axi_rid(rid), .m_axi_rdata(rdata), .m_axi_rresp(2'b00), .m_axi_rlast(rlast),
    .m_axi_rvalid(rvalid), .m_axi_rready(rready),
    .s_axil_awaddr(csr_awaddr), .s_axil_awprot(3'b0), .s_axil_awvalid(csr_awvalid),
    .s_axil_awready(csr_awready), .s_axil_wdata(csr_wdata), .s_axil_wstrb(4'hF),
    .s_axil_wvalid(csr_wvalid), .s_axil_wready(csr_wready), .s_axil_bresp(csr_bresp),
    .s_axil_bvalid(csr_bvalid), .s_axil_bready(1'b1), .s_axil_araddr(csr_araddr),
    .s_axil_arprot(3'b0), .s_axil_arvalid(csr_arvalid), .s_axil_arready(csr_arready),
    .s_axil_rdata(csr_rdata), .s_axil_rresp(csr_rresp), .s_axil_rvalid(csr_rvalid),
    .s_axil_rready(1'b1)
  );

  // ---------------------------------------------------------------- AXI4 memory
  // Bursts are INCR, of whole beats, and never cross 4 KiB. A word of `memory` is a beat; byte 0 is
  // the lowest. Reads are answered in the order of their addresses, LATENCY cycles after it.
  reg [127:0] memory [0:BEATS - 1];
  reg [127:0] expected [0:OUTPUT_BEATS - 1];

  reg [39:0] q_addr [0:255];
  reg [7:0] q_len [0:255];
  reg [3:0] q_id [0:255];
  integer q_time [0:255];
  integer q_in = 0, q_out = 0, cycle = 0, r_beat = 0;
  always @(posedge clk) begin
    cycle <= cycle + 1;
    if (!rst && arvalid) begin  // arready is always 1: at most 9 x 16 bursts wait
      q_addr[q_in % 256] <= araddr;
      q_len[q_in % 256] <= arlen;
      q_id[q_in % 256] <= arid;
      q_time[q_in % 256] <= cycle + LATENCY;
      q_in <= q_in + 1;
    end
    if (!rvalid || rready) begin
      rvalid <= 0;
      if (q_out != q_in && cycle >= q_time[q_out % 256]) begin
        rvalid <= 1;
        rid <= q_id[q_out % 256];
        rdata <= memory[(q_addr[q_out % 256] / PORT_BYTES + r_beat) % BEATS];
        rlast <= r_beat == q_len[q_out % 256];
        r_beat <= r_beat + 1;
        if (r_beat == q_len[q_out % 256]) begin
          r_beat <= 0;
          q_out <= q_out + 1;
        end
      end
    end
  end

  reg [39:0] w_addr = 0;
  integer w_state = 0, lane;  // 0: wait for an address, 1: take beats, 2: answer
  always @(posedge clk) begin
    awready <= 0;
    case (w_state)
      0: if (awvalid && !awready) begin
        awready <= 1;
        w_addr <= awaddr;
        bid <= awid;
        wready <= 1;
        w_state <= 1;
      end
      1: if (wvalid && wready) begin
        for (lane = 0; lane < PORT_BYTES; lane = lane + 1)
          if (wstrb[lane])
            memory[(w_addr / PORT_BYTES) % BEATS][8 * lane +: 8] <= wdata[8 * lane +: 8];
        w_addr <= w_addr + PORT_BYTES;
        if (wlast) begin
          wready <= 0;
          bvalid <= 1;
          w_state <= 2;
        end
      end
      default: if (bready) begin
        bvalid <= 0;
        w_state <= 0;
      end
    endcase
  end

  // ---------------------------------------------------------------- registers
  task csr_write(input [11:0] address, input [31:0] value);
    begin
      @(negedge clk);  // inputs change at the falling edge: no race with the core
      csr_awaddr = address;
      csr_wdata = value;
      csr_awvalid = 1;
      csr_wvalid = 1;
      while (csr_awvalid || csr_wvalid) begin
        @(posedge clk);
        if (csr_awready) csr_awvalid <= #1 0;
        if (csr_wready) csr_wvalid <= #1 0;
        @(negedge clk);
      end
      while (!csr_bvalid) @(negedge clk);
      if (csr_bresp != 0) $display("register %h answers with an error", address);
      @(negedge clk);
    end
  endtask

  task csr_read(input [11:0] address, output [31:0] value);
    begin
      @(negedge clk);
      csr_araddr = address;
      csr_arvalid = 1;
      while (csr_arvalid) begin
        @(posedge clk);
        if (csr_arready) csr_arvalid <= #1 0;
        @(negedge clk);
      end
      while (!csr_rvalid) @(negedge clk);
      value = csr_rdata;
      @(negedge clk);
    end
  endtask

  // ---------------------------------------------------------------- the program
  integer i, wrong;
  reg [31:0] value;
  reg [255:0] completion;
  initial begin
    $readmemh("memory.hex", memory);
    $readmemh("expected.hex", expected);
    repeat (4) @(negedge clk);
    rst = 0;

    csr_read(IDENT, value);
    $display("ident %s", value);

    csr_write(CONTROL, 2);  // reset of rings and counters
    csr_write(MEMORY_LIMIT_LO, BEATS * PORT_BYTES);
    csr_write(RING_BASE_LO, RING);
    csr_write(RING_SIZE, 16);
    csr_write(COMPLETION_BASE_LO, COMPLETIONS);
    csr_write(COMPLETION_SIZE, 16);
    csr_write(IRQ_ENABLE, 3);
    csr_write(CONTROL, 1);  // enable

    csr_write(RING_TAIL, COMMANDS);  // the doorbell: so many commands are in the ring
    value = 0;
    while (value < COMMANDS) begin
      while (!irq) @(negedge clk);
      csr_write(IRQ_STATUS, 3);
      csr_read(COMPLETION_TAIL, value);
    end

    for (i = 0; i < COMMANDS; i = i + 1) begin
      completion = {memory[COMPLETIONS / PORT_BYTES + 2 * i + 1],
                    memory[COMPLETIONS / PORT_BYTES + 2 * i]};
      $display("tag %0d opcode %0d error %0d, %0d cycles, %0d beats", completion[15:0],
               completion[47:40], completion[23:16],
               completion[191:128] - completion[127:64], completion[223:192]);
    end
    wrong = 0;
    for (i = 0; i < OUTPUT_BEATS; i = i + 1)
      if (memory[OUTPUT / PORT_BYTES + i] !== expected[i]) begin
        wrong = wrong + 1;
        $display("output beat %0d is %h, not %h", i, memory[OUTPUT / PORT_BYTES + i], expected[i]);
      end
    if (wrong == 0) $display("PASS: the output equals the golden model bit for bit");
    else $display("FAIL: %0d beats differ", wrong);
    $finish;
  end

  initial begin
    repeat (20000) @(posedge clk);
    $display("FAIL: no end after 20,000 cycles");
    $finish;
  end
endmodule
