// The Verilated core and its memory in one object, behind a C interface for ctypes.
//
// A cycle starts with everything settled. The memory sees what the core drives, the clock rises, the
// memory's new outputs are applied, the clock falls, and everything is settled again. So the core and
// the memory both see what the other drove before the edge, whatever paths lie between its pins.
#include <cstdio>
#include <memory>
#include <string>

#include "Vcore.h"
#include "hbm.h"
#include "memory.h"
#include "verilated.h"
#if VM_TRACE
#include "verilated_fst_c.h"
#endif

namespace {

enum Reason : int32_t { CYCLES = 0, INTERRUPT = 1, STUCK = 2, BREACH = 3 };

struct Parameters {  // as m890.sim.rtl.device declares it
    uint64_t latency, bandwidth, stall, seed, error_start, error_end, check;
};

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
        constexpr unsigned port = sizeof(core_->m_axi_rdata);
        if (hbm) {
            hbm_.reset(new m890::HbmMemory(memory, size, port, *hbm, parameters.error_start,
                                           parameters.error_end));
        } else {
            m890::FixedMemory::Parameters fixed;
            fixed.latency = parameters.latency;
            fixed.bandwidth = parameters.bandwidth;
            fixed.stall = parameters.stall;
            fixed.seed = parameters.seed;
            fixed.error_start = parameters.error_start;
            fixed.error_end = parameters.error_end;
            fixed_.reset(new m890::FixedMemory(memory, size, port, fixed));
        }
        checker_.reset(new m890::Checker(port));
        response_ = {};
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

    // Until the interrupt, `cycles` cycles, or `patience` cycles in which nothing moved at the pins.
    uint64_t run(uint64_t cycles, uint64_t patience, int32_t* reason) {
        uint64_t done = 0, still = 0;
        *reason = core_->irq ? INTERRUPT : CYCLES;
        while (!core_->irq && done < cycles) {
            still = step() ? 0 : still + 1;
            ++done;
            if (still > patience || !checker_->breach().empty()) {
                *reason = still > patience ? STUCK : BREACH;
                return done;
            }
            if (core_->irq) *reason = INTERRUPT;
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
        return hbm_ ? hbm_->counters() : m890::PseudoChannel::Counters();
    }
    const char* breach() const { return checker_->breach().c_str(); }

  private:
    // Cycles without movement at the pins after which a register will not answer: a reset waits for
    // commands in flight, and right after power-up for tables that are cleared entry by entry.
    static constexpr int kAnswer = 10000;

    // One cycle; true when a beat, an address or an answer passed the memory port.
    bool step() {
        m890::AxiRequest& in = request_;
        in.read = {core_->m_axi_araddr, core_->m_axi_arid, core_->m_axi_arlen, core_->m_axi_arsize,
                   core_->m_axi_arburst, core_->m_axi_arvalid != 0};
        in.write = {core_->m_axi_awaddr, core_->m_axi_awid, core_->m_axi_awlen, core_->m_axi_awsize,
                    core_->m_axi_awburst, core_->m_axi_awvalid != 0};
        in.data = bytes(core_->m_axi_wdata);
        in.strobe = bytes(core_->m_axi_wstrb);
        in.last = core_->m_axi_wlast;
        in.data_valid = core_->m_axi_wvalid;
        in.answer_ready = core_->m_axi_bready;
        in.read_ready = core_->m_axi_rready;
        const bool read = response_.read_valid && in.read_ready;
        const bool written = in.data_valid && response_.data_ready;
        const bool moved = (in.read.valid && response_.read_address_ready) ||
                           (in.write.valid && response_.write_address_ready) || written || read ||
                           (response_.answer_valid && in.answer_ready);
        beats_[0] += read;
        beats_[1] += written;
        if (checked_) checker_->check(in, response_);
        if (fixed_) fixed_->clock(in, response_);  // known, so that the compiler can inline it
        else hbm_->clock(in, response_);
        edge();
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
        core_->m_axi_arready = response_.read_address_ready;
        core_->m_axi_awready = response_.write_address_ready;
        core_->m_axi_wready = response_.data_ready;
        core_->m_axi_bvalid = response_.answer_valid;
        core_->m_axi_bid = response_.answer_id;
        core_->m_axi_bresp = response_.answer_code;
        core_->m_axi_rvalid = response_.read_valid;
        if (response_.read_fresh) {
            core_->m_axi_rid = response_.read_id;
            core_->m_axi_rresp = response_.read_code;
            core_->m_axi_rlast = response_.read_last;
            memcpy(&core_->m_axi_rdata, response_.read_data, sizeof(core_->m_axi_rdata));
        }
    }

    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vcore> core_;
    std::unique_ptr<m890::FixedMemory> fixed_;  // one of the two
    std::unique_ptr<m890::HbmMemory> hbm_;
    std::unique_ptr<m890::Checker> checker_;
#if VM_TRACE
    std::unique_ptr<VerilatedFstC> waves_;
    uint64_t first_ = 0, last_ = 0;  // cycles that are recorded
#endif
    m890::AxiRequest request_ = {};
    m890::AxiResponse response_ = {};
    uint64_t cycle_ = 0;
    uint64_t beats_[2] = {0, 0};  // of the memory port: read, written
    bool checked_;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void* m890_create(uint8_t* memory, uint64_t size, const Parameters* p,
                         const m890::HbmParameters* hbm) {
    return new Device(memory, size, *p, hbm);
}
EXPORT void m890_destroy(void* device) { delete static_cast<Device*>(device); }
EXPORT uint64_t m890_run(void* device, uint64_t cycles, uint64_t patience, int32_t* reason) {
    return static_cast<Device*>(device)->run(cycles, patience, reason);
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
