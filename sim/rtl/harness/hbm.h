// HBM3-like memory behind the core's AXI4 port: bursts become accesses of pseudo-channels.
#ifndef M890_HBM_H
#define M890_HBM_H

#include <bitset>
#include <memory>

#include "dram.h"
#include "memory.h"

namespace m890 {

// Where an address lies.
struct DramPlace {  // as m890.sim.rtl.hbm declares it
    uint64_t channel, bank, row, column;
};

// Address -> pseudo-channel (stripe by stripe), then bank, column and row by slices of bits.
class AddressMap {
  public:
    explicit AddressMap(const HbmParameters& p) : p_(p) {
        while ((1ull << group_bits_) < p.groups) ++group_bits_;
        while ((1ull << bank_bits_) < p.banks) ++bank_bits_;
    }

    DramPlace place(uint64_t address) const {
        const uint64_t atom = address / p_.burst_bytes, stripe = atom / p_.stripe;
        uint64_t local = stripe / p_.pseudo_channels * p_.stripe + atom % p_.stripe;
        uint64_t field[3] = {0, 0, 0};  // column, group, bank
        unsigned filled[3] = {0, 0, 0};
        for (uint64_t slice : p_.slices) {
            if (!slice) break;
            const unsigned bits = slice & 255, kind = (slice >> 8) % 3;
            field[kind] |= (local & ((1ull << bits) - 1)) << filled[kind];
            filled[kind] += bits;
            local >>= bits;
        }
        if (p_.hash) {  // neighbouring rows of a bank hold addresses that lie far apart
            field[1] ^= local & (p_.groups - 1);
            field[2] ^= local >> group_bits_ & (p_.banks - 1);
        }
        return {stripe % p_.pseudo_channels, field[1] * p_.banks + field[2], local, field[0]};
    }

  private:
    HbmParameters p_;
    unsigned group_bits_ = 0, bank_bits_ = 0;
};

// Bursts are answered in order per AXI id; beats of different ids may interleave. Data that a read
// brings are those of the cycle in which it is answered. A write is answered once it is queued.
class HbmMemory final : public Memory {
  public:
    HbmMemory(uint8_t* bytes, uint64_t size, unsigned port_bytes, const HbmParameters& p,
              uint64_t error_start = 0, uint64_t error_end = 0, unsigned ids = 16)
        : bytes_(bytes), size_(size), port_(port_bytes), p_(p), map_(p),
          error_start_(error_start), error_end_(error_end), ids_(ids) {
        memset(failed_, 0xa5, sizeof failed_);
        for (unsigned n = 0; n < p.pseudo_channels; ++n) channels_.emplace_back(new Channel(p, n));
    }

    void clock(const AxiRequest& in, AxiResponse& out) override {
        ++now_;
        out.read_fresh = false;
        accept(in, out);
        phase_ += p_.clock_mhz;
        for (; phase_ >= p_.core_mhz; phase_ -= p_.core_mhz) tick();
        read(in, out);
        write(out, in);
    }

    unsigned outstanding() const override {
        return reads_ + static_cast<unsigned>(writes_.size() + answers_.size());
    }

    // Sums over the pseudo-channels.
    PseudoChannel::Counters counters() const {
        PseudoChannel::Counters sum;
        for (const auto& channel : channels_) sum.add(channel->dram.counters());
        return sum;
    }

  private:
    static constexpr unsigned kOutstanding = 64, kBoundary = 4096;
    static constexpr size_t kWaiting = 16;  // writes per pseudo-channel in front of its queue

    struct Burst {
        uint64_t address;  // of the next beat
        uint64_t first;    // number of the first access
        unsigned beats;    // left
        uint8_t id;
        uint8_t code;
        uint64_t due;           // cycle of a write's answer
        std::bitset<256> here;  // accesses whose data have come
    };
    struct Channel {
        Channel(const HbmParameters& p, unsigned number) : dram(p, number) {}
        PseudoChannel dram;
        std::deque<DramAccess> reads, writes;  // that wait for room in the queue
        uint64_t last_write = ~0ull;           // number of the newest write access
    };
    struct Arrival {
        uint64_t due;
        Burst* burst;
        uint32_t index;
    };

    uint8_t code(uint64_t address) const {
        if (address >= size_ || size_ - address < port_) return DECODE_ERROR;
        return address < error_end_ && address + port_ > error_start_ ? SLAVE_ERROR : OKAY;
    }
    uint64_t last_access(uint64_t address) const { return (address + port_ - 1) / p_.burst_bytes; }

    void accept(const AxiRequest& in, const AxiResponse& out) {
        if (in.read.valid && out.read_address_ready) {
            const uint64_t first = in.read.address / p_.burst_bytes;
            std::deque<Burst>& queue = ids_[in.read.id & (ids_.size() - 1)];
            queue.push_back({in.read.address, first, in.read.length + 1u, in.read.id, OKAY, 0, {}});
            Burst& burst = queue.back();
            const uint64_t last = last_access(in.read.address + in.read.length * port_);
            for (uint64_t n = first; n <= last; ++n) {
                const DramPlace place = map_.place(n * p_.burst_bytes);
                channels_[place.channel]->reads.push_back(
                    {static_cast<uint32_t>(place.bank), place.row, false, &burst,
                     static_cast<uint32_t>(n - first), 0});
            }
            ++reads_;
        }
        if (in.write.valid && out.write_address_ready) {
            writes_.push_back({in.write.address, 0, in.write.length + 1u, in.write.id, OKAY, 0, {}});
        }
        if (in.data_valid && out.data_ready) take(in);
    }

    // One beat of the oldest write burst; accesses of which no byte is written are left out.
    void take(const AxiRequest& in) {
        Burst& burst = writes_.front();
        const uint8_t failed = code(burst.address);
        if (failed != OKAY) burst.code = failed;
        for (unsigned i = 0; i < port_ && failed == OKAY; ++i) {
            if (!(in.strobe[i / 8] >> (i % 8) & 1)) continue;
            bytes_[burst.address + i] = in.data[i];
            const uint64_t number = (burst.address + i) / p_.burst_bytes;
            const DramPlace place = map_.place(number * p_.burst_bytes);
            Channel& channel = *channels_[place.channel];
            if (channel.last_write == number) continue;  // the beats of an access become one write
            channel.last_write = number;
            channel.writes.push_back(
                {static_cast<uint32_t>(place.bank), place.row, true, nullptr, 0, 0});
        }
        burst.address += port_;
        if (--burst.beats) return;
        for (auto& channel : channels_) channel->last_write = ~0ull;
        answers_.push_back(burst);
        answers_.back().due = now_ + p_.path;
        writes_.pop_front();
    }

    // One clock of the memory.
    void tick() {
        const unsigned count = static_cast<unsigned>(channels_.size());
        const unsigned together = static_cast<unsigned>(p_.per_channel);
        for (unsigned first = 0; first < count; first += together) {
            bool row_bus = true, column_bus = true;  // shared by the pseudo-channels of a channel
            for (unsigned n = 0; n < together; ++n) {
                const unsigned at = first + (n + static_cast<unsigned>(tick_)) % together;
                if (at < count) serve(*channels_[at], row_bus, column_bus);
            }
        }
        ++tick_;
    }

    void serve(Channel& channel, bool& row_bus, bool& column_bus) {
        while (!channel.reads.empty() && channel.dram.room(false)) {
            channel.dram.push(channel.reads.front(), tick_);
            channel.reads.pop_front();
        }
        while (!channel.writes.empty() && channel.dram.room(true)) {
            channel.dram.push(channel.writes.front(), tick_);
            channel.writes.pop_front();
        }
        channel.dram.clock(tick_, row_bus, column_bus);
        DramAccess access;
        while (channel.dram.finished(tick_, &access)) {
            arrivals_.push_back({now_ + p_.path, static_cast<Burst*>(access.owner), access.index});
        }
    }

    bool here(const Burst& burst) const {
        for (uint64_t n = burst.address / p_.burst_bytes; n <= last_access(burst.address); ++n) {
            if (!burst.here[n - burst.first]) return false;
        }
        return true;
    }

    void read(const AxiRequest& in, AxiResponse& out) {
        for (; !arrivals_.empty() && arrivals_.front().due <= now_; arrivals_.pop_front()) {
            arrivals_.front().burst->here.set(arrivals_.front().index);
        }
        if (out.read_valid && in.read_ready) out.read_valid = false;
        // A burst goes on while its beats are here; else another id's beat fills the gap.
        for (unsigned n = 0; n < ids_.size() && !out.read_valid; ++n) {
            std::deque<Burst>& queue = ids_[(turn_ + n) & (ids_.size() - 1)];
            if (queue.empty() || !here(queue.front())) continue;
            turn_ = (turn_ + n) & (ids_.size() - 1);
            Burst& burst = queue.front();
            out.read_code = code(burst.address);
            out.read_data = out.read_code == OKAY ? bytes_ + burst.address : failed_;
            out.read_id = burst.id;
            out.read_last = burst.beats == 1;
            out.read_valid = out.read_fresh = true;
            burst.address += port_;
            if (!--burst.beats) {
                queue.pop_front();
                --reads_;
                turn_ = (turn_ + 1) & (ids_.size() - 1);
            }
        }
        out.read_address_ready = reads_ < kOutstanding;
    }

    void write(AxiResponse& out, const AxiRequest& in) {
        if (out.answer_valid && in.answer_ready) out.answer_valid = false;
        if (!out.answer_valid && !answers_.empty() && answers_.front().due <= now_) {
            out.answer_id = answers_.front().id;
            out.answer_code = answers_.front().code;
            out.answer_valid = true;
            answers_.pop_front();
        }
        out.write_address_ready = writes_.size() + answers_.size() < kOutstanding;
        out.data_ready = !writes_.empty();
        for (const auto& channel : channels_) out.data_ready &= channel->writes.size() < kWaiting;
    }

    uint8_t* bytes_;
    uint64_t size_;
    unsigned port_;
    HbmParameters p_;
    AddressMap map_;
    uint64_t error_start_, error_end_;
    std::vector<std::unique_ptr<Channel>> channels_;
    std::vector<std::deque<Burst>> ids_;  // reads under way, in order per id; a power of two
    std::deque<Burst> writes_, answers_;
    std::deque<Arrival> arrivals_;
    uint64_t now_ = 0, phase_ = 0;  // cycles of the core; part of a cycle in which no clock was due
    int64_t tick_ = 0;              // clocks of the memory
    unsigned reads_ = 0, turn_ = 0;
    uint8_t failed_[128];
};

}  // namespace m890

#endif
