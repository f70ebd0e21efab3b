// Memory behind the core's AXI4 port: the seam (class Memory) and its simplest model.
#ifndef M890_MEMORY_H
#define M890_MEMORY_H

#include <cstdint>
#include <cstring>
#include <deque>
#include <string>

namespace m890 {

// What the core drives, settled, just before a rising edge.
struct AxiRequest {
    struct Address {
        uint64_t address;
        uint8_t id, length, size, burst;  // length: beats - 1
        bool valid;
    };
    Address read, write;
    const uint8_t* data;    // of the write channel, one beat
    const uint8_t* strobe;  // one bit per byte
    bool last, data_valid, answer_ready, read_ready;
};

// What the memory drives after that edge.
struct AxiResponse {
    bool read_address_ready, write_address_ready, data_ready;
    bool answer_valid, read_valid, read_last;
    bool read_fresh;  // `read_data` is a beat that was not there in the cycle before
    uint8_t answer_id, answer_code, read_id, read_code;
    const uint8_t* read_data;
};

enum Code : uint8_t { OKAY = 0, SLAVE_ERROR = 2, DECODE_ERROR = 3 };

// A small fast generator (xorshift64*), so that a run depends on nothing but its seed.
class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull) {
        if (!state_) state_ = 1;
    }
    uint64_t next() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545f4914f6cdd1dull;
    }
    // True with a probability of `threshold` / 2^32.
    bool below(uint64_t threshold) { return threshold && (next() >> 32) < threshold; }

  private:
    uint64_t state_;
};

// A memory model. It owns the timing; the bytes are the host's.
class Memory {
  public:
    virtual ~Memory() = default;
    // One clock cycle. `response` still holds what was driven before the edge, so that handshakes
    // are known; on return it holds what is driven after it.
    virtual void clock(const AxiRequest& request, AxiResponse& response) = 0;
    // Bursts that are accepted and not yet answered.
    virtual unsigned outstanding() const = 0;
};

// Every burst is answered `latency` cycles after its address (reads) or last beat (writes), in
// order, with at most `bandwidth` bytes per cycle for both directions together (0: no limit).
class FixedMemory final : public Memory {
  public:
    struct Parameters {
        uint64_t latency = 1;    // cycles, 1 or more
        uint64_t bandwidth = 0;  // bytes per cycle in 1/256, 0: no limit
        uint64_t stall = 0;      // probability that a channel pauses in a cycle, in 1/2^32
        uint64_t seed = 0;
        uint64_t error_start = 0, error_end = 0;  // accesses in between are answered with an error
    };

    FixedMemory(uint8_t* bytes, uint64_t size, unsigned port_bytes, const Parameters& parameters)
        : bytes_(bytes), size_(size), port_(port_bytes), parameters_(parameters),
          random_(parameters.seed) {
        memset(failed_, 0xa5, sizeof failed_);
        if (parameters_.latency < 1) parameters_.latency = 1;
    }

    void clock(const AxiRequest& in, AxiResponse& out) override {
        ++now_;
        out.read_fresh = false;
        budget_ += static_cast<int64_t>(parameters_.bandwidth);
        const int64_t most = 512 * static_cast<int64_t>(port_);
        if (budget_ > most) budget_ = most;
        read(in, out);
        write(in, out);
    }

    unsigned outstanding() const override {
        return static_cast<unsigned>(reads_.size() + writes_.size() + answers_.size());
    }

  private:
    static constexpr size_t kOutstanding = 64;

    struct Burst {
        uint64_t address, due;
        unsigned beats;  // left
        uint8_t id;
        uint8_t code = OKAY;
    };

    bool pause() { return random_.below(parameters_.stall); }
    bool affordable() const {
        return !parameters_.bandwidth || budget_ >= 256 * static_cast<int64_t>(port_);
    }
    void spend() {
        if (parameters_.bandwidth) budget_ -= 256 * static_cast<int64_t>(port_);
    }
    uint8_t code(uint64_t address) const {
        if (address >= size_ || size_ - address < port_) return DECODE_ERROR;
        const bool bad = address < parameters_.error_end && address + port_ > parameters_.error_start;
        return bad ? SLAVE_ERROR : OKAY;
    }

    void read(const AxiRequest& in, AxiResponse& out) {
        if (in.read.valid && out.read_address_ready) {
            reads_.push_back({in.read.address, now_ + parameters_.latency - 1,
                              in.read.length + 1u, in.read.id});
        }
        if (out.read_valid && in.read_ready) out.read_valid = false;
        if (!out.read_valid && !reads_.empty() && reads_.front().due <= now_ && affordable() &&
            !pause()) {
            Burst& burst = reads_.front();
            out.read_code = code(burst.address);
            // Data of a failed beat is no data: what comes must not be used.
            out.read_data = out.read_code == OKAY ? bytes_ + burst.address : failed_;
            out.read_id = burst.id;
            out.read_last = burst.beats == 1;
            out.read_valid = out.read_fresh = true;
            spend();
            burst.address += port_;
            if (!--burst.beats) reads_.pop_front();
        }
        out.read_address_ready = reads_.size() < kOutstanding && !pause();
    }

    void write(const AxiRequest& in, AxiResponse& out) {
        if (in.write.valid && out.write_address_ready) {
            writes_.push_back({in.write.address, 0, in.write.length + 1u, in.write.id});
        }
        if (in.data_valid && out.data_ready) {
            Burst& burst = writes_.front();
            const uint8_t failed = code(burst.address);
            if (failed == OKAY) store(burst.address, in);
            else burst.code = failed;
            spend();
            burst.address += port_;
            if (!--burst.beats) {
                answers_.push_back(burst);
                answers_.back().due = now_ + parameters_.latency - 1;
                writes_.pop_front();
            }
        }
        if (out.answer_valid && in.answer_ready) out.answer_valid = false;
        if (!out.answer_valid && !answers_.empty() && answers_.front().due <= now_ && !pause()) {
            out.answer_id = answers_.front().id;
            out.answer_code = answers_.front().code;
            out.answer_valid = true;
            answers_.pop_front();
        }
        out.write_address_ready = writes_.size() + answers_.size() < kOutstanding && !pause();
        out.data_ready = !writes_.empty() && affordable() && !pause();
    }

    void store(uint64_t address, const AxiRequest& in) {
        for (unsigned i = 0; i < port_; ++i) {
            if (in.strobe[i / 8] >> (i % 8) & 1) bytes_[address + i] = in.data[i];
        }
    }

    uint8_t* bytes_;
    uint64_t size_;
    unsigned port_;
    Parameters parameters_;
    Random random_;
    uint64_t now_ = 0;
    int64_t budget_ = 0;
    std::deque<Burst> reads_, writes_, answers_;
    uint8_t failed_[128];
};

// Holds the core to the rules of AXI4. The first breach is kept as a sentence.
class Checker {
  public:
    explicit Checker(unsigned port_bytes) : port_(port_bytes) {
        while ((1u << size_) < port_) ++size_;
    }

    // Before an edge: what the core drives, and what the memory drives.
    void check(const AxiRequest& in, const AxiResponse& out) {
        address("read", in.read, out.read_address_ready, read_);
        address("write", in.write, out.write_address_ready, write_);
        if (in.write.valid && out.write_address_ready) bursts_.push_back(in.write.length);
        if (in.data_valid && out.data_ready) {
            if (!bursts_.empty()) {
                const bool last = beat_ == bursts_.front();
                if (last != in.last) fail("wlast does not mark the last beat of the write burst");
                beat_ = last ? 0 : beat_ + 1;
                if (last) bursts_.pop_front();
            }
        }
        if (beat_waits_ && (!in.data_valid || memcmp(beat_data_, in.data, port_))) {
            fail("wvalid fell or wdata changed before wready");
        }
        beat_waits_ = in.data_valid && !out.data_ready;
        if (beat_waits_) memcpy(beat_data_, in.data, port_);
    }

    const std::string& breach() const { return breach_; }

  private:
    struct Waiting {
        bool valid = false;
        uint64_t address = 0;
        uint8_t length = 0;
    };

    void address(const char* kind, const AxiRequest::Address& a, bool ready, Waiting& waiting) {
        if (waiting.valid &&
            (!a.valid || a.address != waiting.address || a.length != waiting.length)) {
            fail(std::string("the ") + kind + " address was withdrawn or changed before ready");
        }
        waiting = {a.valid && !ready, a.address, a.length};
        if (!a.valid) return;
        if (a.size != size_ || a.burst != 1) fail(std::string("a ") + kind + " burst is not INCR of full beats");
        if (a.address % port_) fail(std::string("a ") + kind + " address is not aligned to the port");
        if (a.address % 4096 + (a.length + 1u) * port_ > 4096) {
            fail(std::string("a ") + kind + " burst crosses 4 KiB");
        }
    }
    void fail(const std::string& what) {
        if (breach_.empty()) breach_ = what;
    }

    unsigned port_, size_ = 0;
    Waiting read_, write_;
    std::deque<uint8_t> bursts_;
    unsigned beat_ = 0;
    bool beat_waits_ = false;
    uint8_t beat_data_[128] = {0};
    std::string breach_;
};

}  // namespace m890

#endif
