// The Verilated core, or cluster, and its memory in one object, behind a C interface for ctypes.
//
// M890_PORTS of ports.h names the memory ports, M890_IDS how many AXI ids they have. All ports reach
// the same bytes; behind each is the timing of a memory of its own. A cycle starts with everything settled. The memory sees what the core drives, the clock rises, the
// memory's new outputs are applied, the clock falls, and everything is settled again. So the core and
// the memory both see what the other drove before the edge, whatever paths lie between its pins.
#include <cstdio>
#include <memory>
#include <string>

#include "Vcore.h"
#include "hbm.h"
#include "memory.h"
#include "ports.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_fst_c.h"
#endif

namespace {

enum Reason : int32_t { CYCLES = 0, INTERRUPT = 1, STUCK = 2, BREACH = 3 };

struct Parameters {  // as m890.sim.rtl.device declares it
    uint64_t latency, bandwidth, stall, seed, error_start, error_end, check;
};

#define COUNT(number, prefix) +1
constexpr unsigned kPorts = 0 M890_PORTS(COUNT);

template <typename T>
const uint8_t* bytes(const T& port) { return reinterpret_cast<const uint8_t*>(&port); }

class Device {
  public:
    // `hbm` chooses the HBM3-like memory instead of the one of fixed latency and bandwidth.
    Device(uint8_t* memory, uint64_t size, const Parameters& parameters,
           const m890::HbmParameters* hbm)
        : context_(new VerilatedContext), checked_(parameters.check != 0) {
        context_->randReset(2);  // registers and memories start with random words
        context_->randSeed(static_cast<int>(parameters.seed * 2 + 1));
#if VM_TRACE
        context_->traceEverOn(true);
#endif
        core_.reset(new Vcore(context_.get(), ""));
#define CREATE(number, prefix) \
    create(ports_[number], number, sizeof(core_->prefix##rdata), memory, size, parameters, hbm);
        M890_PORTS(CREATE)
        core_->clk = 0;
        core_->s_axil_awvalid = 0;
        core_->s_axil_wvalid = 0;
        core_->s_axil_arvalid = 0;
        core_->s_axil_bready = 1;
        core_->s_axil_rready = 1;
        core_->s_axil_wstrb = 15;
        core_->s_axil_awprot = 0;
        core_->s_axil_arprot = 0;
        apply();
        core_->rst = 1;
        core_->eval();
        for (int i = 0; i < 4; ++i) edge();
        core_->rst = 0;
        core_->eval();
    }

    ~Device() {
        waves_stop();
        core_->final();
    }

    // Until an interrupt of `mask`, `cycles` cycles, or `patience` cycles in which nothing moved at
    // the pins.
    uint64_t run(uint64_t cycles, uint64_t patience, uint32_t mask, int32_t* reason) {
        uint64_t done = 0, still = 0;
        *reason = core_->irq & mask ? INTERRUPT : CYCLES;
        while (!(core_->irq & mask) && done < cycles) {
            still = step() ? 0 : still + 1;
            ++done;
            if (still > patience || breached_) {
                *reason = still > patience ? STUCK : BREACH;
                return done;
            }
            if (core_->irq & mask) *reason = INTERRUPT;
        }
        return done;
    }

    // Register access over AXI4-Lite. 0, or the bus' error code, or -1 when the core never answers.
    int32_t write(uint32_t address, uint32_t value) {
        core_->s_axil_awaddr = address;
        core_->s_axil_wdata = value;
        core_->s_axil_awvalid = 1;
        core_->s_axil_wvalid = 1;
        core_->eval();
        for (int still = 0; still < kAnswer; ++still) {
            const bool address_taken = core_->s_axil_awvalid && core_->s_axil_awready;
            const bool data_taken = core_->s_axil_wvalid && core_->s_axil_wready;
            const bool answered = core_->s_axil_bvalid;
            const int32_t code = core_->s_axil_bresp;
            if (step()) still = 0;
            if (address_taken) core_->s_axil_awvalid = 0;
            if (data_taken) core_->s_axil_wvalid = 0;
            core_->eval();
            if (answered) return code;
        }
        return -1;
    }

    int32_t read(uint32_t address, uint32_t* value) {
        core_->s_axil_araddr = address;
        core_->s_axil_arvalid = 1;
        core_->eval();
        for (int still = 0; still < kAnswer; ++still) {
            const bool taken = core_->s_axil_arvalid && core_->s_axil_arready;
            const bool answered = core_->s_axil_rvalid;
            const int32_t code = core_->s_axil_rresp;
            *value = core_->s_axil_rdata;
            if (step()) still = 0;
            if (taken) core_->s_axil_arvalid = 0;
            core_->eval();
            if (answered) return code;
        }
        return -1;
    }

    // Record the cycles from `first` up to, not including, `last`.
    int32_t waves_start(const char* path, uint64_t first, uint64_t last) {
#if VM_TRACE
        waves_stop();
        first_ = first;
        last_ = last;
        // Time in tenths of a nanosecond: a cycle is one nanosecond on the axis.
        waves_.reset(new VerilatedFstC);
        waves_->set_time_unit("100ps");
        waves_->set_time_resolution("100ps");
        core_->trace(waves_.get(), 99);
        waves_->open(path);
        return waves_->isOpen() ? 0 : -1;
#else
        (void)path;
        (void)first;
        (void)last;
        return -2;
#endif
    }

    void waves_stop() {
#if VM_TRACE
        if (waves_) {
            waves_->close();
            waves_.reset();
        }
#endif
    }

    uint64_t cycle() const { return cycle_; }
    const uint64_t* beats() const { return beats_; }
    m890::PseudoChannel::Counters memory_counters() const {
        m890::PseudoChannel::Counters sum;
        for (const Port& port : ports_) {
            if (port.hbm) sum.add(port.hbm->counters());
        }
        return sum;
    }
    const char* breach() const {
        for (const Port& port : ports_) {
            if (!port.checker->breach().empty()) return port.checker->breach().c_str();
        }
        return "";
    }

  private:
    // Cycles without movement at the pins after which a register will not answer: a reset waits for
    // commands in flight, and right after power-up for tables that are cleared entry by entry.
    static constexpr int kAnswer = 10000;

    // A memory port: what both sides drive, the memory behind it (one of the two), its checker.
    struct Port {
        m890::AxiRequest request = {};
        m890::AxiResponse response = {};
        std::unique_ptr<m890::FixedMemory> fixed;
        std::unique_ptr<m890::HbmMemory> hbm;
        std::unique_ptr<m890::Checker> checker;
    };

    static void create(Port& port, unsigned number, unsigned width, uint8_t* memory, uint64_t size,
                       const Parameters& parameters, const m890::HbmParameters* hbm) {
        if (hbm) {
            port.hbm.reset(new m890::HbmMemory(memory, size, width, *hbm, parameters.error_start,
                                               parameters.error_end, M890_IDS));
        } else {
            m890::FixedMemory::Parameters fixed;
            fixed.latency = parameters.latency;
            fixed.bandwidth = parameters.bandwidth;
            fixed.stall = parameters.stall;
            fixed.seed = parameters.seed + number;
            fixed.error_start = parameters.error_start;
            fixed.error_end = parameters.error_end;
            port.fixed.reset(new m890::FixedMemory(memory, size, width, fixed));
        }
        port.checker.reset(new m890::Checker(width));
    }

    // One cycle; true when a beat, an address or an answer passed a memory port.
    bool step() {
        bool moved = false;
#define STEP(number, p)                                                                         \
    {                                                                                           \
        m890::AxiRequest& in = ports_[number].request;                                          \
        in.read = {core_->p##araddr, core_->p##arid,    core_->p##arlen,                        \
                   core_->p##arsize, core_->p##arburst, core_->p##arvalid != 0};                \
        in.write = {core_->p##awaddr, core_->p##awid,    core_->p##awlen,                       \
                    core_->p##awsize, core_->p##awburst, core_->p##awvalid != 0};               \
        in.data = bytes(core_->p##wdata);                                                       \
        in.strobe = bytes(core_->p##wstrb);                                                     \
        in.last = core_->p##wlast;                                                              \
        in.data_valid = core_->p##wvalid;                                                       \
        in.answer_ready = core_->p##bready;                                                     \
        in.read_ready = core_->p##rready;                                                       \
        moved |= clock(ports_[number]);                                                         \
    }
        M890_PORTS(STEP)
        edge();
        return moved;
    }

    // A cycle of one port's memory; true when anything passed the port.
    bool clock(Port& port) {
        const m890::AxiRequest& in = port.request;
        m890::AxiResponse& out = port.response;
        const bool read = out.read_valid && in.read_ready;
        const bool written = in.data_valid && out.data_ready;
        const bool moved = (in.read.valid && out.read_address_ready) ||
                           (in.write.valid && out.write_address_ready) || written || read ||
                           (out.answer_valid && in.answer_ready);
        beats_[0] += read;
        beats_[1] += written;
        if (checked_) {
            port.checker->check(in, out);
            breached_ |= !port.checker->breach().empty();
        }
        if (port.fixed) port.fixed->clock(in, out);  // known, so that the compiler can inline it
        else port.hbm->clock(in, out);
        return moved;
    }

    void edge() {
        core_->clk = 1;
        core_->eval();
        apply();
#if VM_TRACE
        const bool shown = waves_ && cycle_ >= first_;
        if (shown) {  // inputs change with the edge, as they do in hardware
            core_->eval();
            waves_->dump(10 * cycle_);
        }
#endif
        core_->clk = 0;
        core_->eval();
#if VM_TRACE
        if (shown) {
            waves_->dump(10 * cycle_ + 5);
            if (cycle_ + 1 >= last_) waves_stop();
        }
#endif
        ++cycle_;
    }

    void apply() {
#define APPLY(number, p)                                                          \
    {                                                                             \
        const m890::AxiResponse& out = ports_[number].response;                   \
        core_->p##arready = out.read_address_ready;                               \
        core_->p##awready = out.write_address_ready;                              \
        core_->p##wready = out.data_ready;                                        \
        core_->p##bvalid = out.answer_valid;                                      \
        core_->p##bid = out.answer_id;                                            \
        core_->p##bresp = out.answer_code;                                        \
        core_->p##rvalid = out.read_valid;                                        \
        if (out.read_fresh) {                                                     \
            core_->p##rid = out.read_id;                                          \
            core_->p##rresp = out.read_code;                                      \
            core_->p##rlast = out.read_last;                                      \
            memcpy(&core_->p##rdata, out.read_data, sizeof(core_->p##rdata));     \
        }                                                                         \
    }
        M890_PORTS(APPLY)
    }

    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vcore> core_;
    Port ports_[kPorts];
#if VM_TRACE
    std::unique_ptr<VerilatedFstC> waves_;
    uint64_t first_ = 0, last_ = 0;  // cycles that are recorded
#endif
    uint64_t cycle_ = 0;
    uint64_t beats_[2] = {0, 0};  // of all memory ports: read, written
    bool checked_, breached_ = false;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void* m890_create(uint8_t* memory, uint64_t size, const Parameters* p,
                         const m890::HbmParameters* hbm) {
    return new Device(memory, size, *p, hbm);
}
EXPORT void m890_destroy(void* device) { delete static_cast<Device*>(device); }
EXPORT uint64_t m890_run(void* device, uint64_t cycles, uint64_t patience, uint32_t mask,
                         int32_t* reason) {
    return static_cast<Device*>(device)->run(cycles, patience, mask, reason);
}
EXPORT int32_t m890_write(void* device, uint32_t address, uint32_t value) {
    return static_cast<Device*>(device)->write(address, value);
}
EXPORT int32_t m890_read(void* device, uint32_t address, uint32_t* value) {
    return static_cast<Device*>(device)->read(address, value);
}
EXPORT uint64_t m890_cycle(void* device) { return static_cast<Device*>(device)->cycle(); }
EXPORT void m890_port_beats(void* device, uint64_t* beats) {
    memcpy(beats, static_cast<Device*>(device)->beats(), 2 * sizeof *beats);
}
EXPORT void m890_memory_counters(void* device, m890::PseudoChannel::Counters* counters) {
    *counters = static_cast<Device*>(device)->memory_counters();
}
EXPORT const char* m890_breach(void* device) { return static_cast<Device*>(device)->breach(); }
EXPORT int32_t m890_waves_start(void* device, const char* path, uint64_t first, uint64_t last) {
    return static_cast<Device*>(device)->waves_start(path, first, last);
}
EXPORT void m890_waves_stop(void* device) { static_cast<Device*>(device)->waves_stop(); }
