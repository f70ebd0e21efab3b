// Plays accesses and bursts into the HBM model without a core, behind a C interface for ctypes.
#include "harness/hbm.h"

namespace {

struct Access {  // as m890.sim.rtl.player declares it
    uint64_t clock, channel, bank, row, write;
};

struct Request {  // as m890.sim.rtl.player declares it
    uint64_t address, beats, id, write, data;  // data: offset of its bytes
};

// Plays requests: reads per id in order, a limited number ahead of their beats; writes in order.
class Player {
  public:
    Player(uint8_t* memory, uint64_t size, unsigned port, const m890::HbmParameters& parameters)
        : port_(port), memory_(memory, size, port, parameters), checker_(port), strobe_(port, 255) {}

    // Until everything is answered. Returns cycles, or 0 if `limit` cycles were not enough.
    uint64_t play(const Request* requests, uint64_t count, uint64_t window, uint64_t bursts,
                  uint64_t stall, uint64_t seed, uint64_t limit, uint8_t* data, uint64_t* done) {
        m890::Random random(seed);
        std::vector<std::deque<const Request*>> waiting(16), under_way(16);
        std::deque<const Request*> writes, write_beats, answers;
        for (const Request* r = requests; r != requests + count; ++r) {
            (r->write ? writes : waiting[r->id]).push_back(r);
        }
        std::vector<uint64_t> reserved(16), got(16);
        uint64_t left = count, sent = 0;
        unsigned turn = 0;
        const Request* asked = nullptr;  // on the read address channel
        bool writing = false, beat = false;
        m890::AxiRequest in = {};
        m890::AxiResponse out = {};
        uint64_t size = 0;
        while ((1u << size) < port_) ++size;
        for (uint64_t cycle = 1; cycle <= limit; ++cycle) {
            for (unsigned n = 0; n < 16 && !asked; ++n) {  // round robin, as the core's arbiter
                const unsigned id = (turn + n) % 16;
                if (waiting[id].empty() || under_way[id].size() >= bursts) continue;
                if (reserved[id] + waiting[id].front()->beats > window) continue;
                if (random.below(stall)) continue;
                asked = waiting[id].front();
                turn = id + 1;
            }
            in.read = {};
            if (asked) {
                in.read = {asked->address, static_cast<uint8_t>(asked->id),
                           static_cast<uint8_t>(asked->beats - 1), static_cast<uint8_t>(size), 1,
                           true};
            }
            writing |= !writes.empty() && !random.below(stall);
            in.write = {};
            if (writing) {
                in.write = {writes.front()->address, static_cast<uint8_t>(writes.front()->id),
                            static_cast<uint8_t>(writes.front()->beats - 1),
                            static_cast<uint8_t>(size), 1, true};
            }
            beat |= !write_beats.empty() && !random.below(stall);
            in.data_valid = beat;
            in.strobe = strobe_.data();
            if (beat) {
                in.data = data + write_beats.front()->data + sent * port_;
                in.last = sent + 1 == write_beats.front()->beats;
            }
            in.read_ready = in.answer_ready = true;
            checker_.check(in, out);
            const bool read_taken = in.read.valid && out.read_address_ready;
            const bool write_taken = in.write.valid && out.write_address_ready;
            const bool beat_taken = beat && out.data_ready;
            if (out.read_valid) {
                const unsigned id = out.read_id;
                if (under_way[id].empty()) return 0;
                const Request& r = *under_way[id].front();
                memcpy(data + r.data + got[id] * port_, out.read_data, port_);
                --reserved[id];
                if ((++got[id] == r.beats) != out.read_last) return 0;
                if (out.read_last) {
                    done[&r - requests] = cycle;
                    under_way[id].pop_front();
                    got[id] = 0;
                    --left;
                }
            }
            if (out.answer_valid) {
                if (answers.empty() || answers.front()->id != out.answer_id) return 0;
                done[answers.front() - requests] = cycle;
                answers.pop_front();
                --left;
            }
            if (!left) {
                drain();
                return cycle;
            }
            memory_.clock(in, out);
            if (read_taken) {
                waiting[asked->id].pop_front();
                under_way[asked->id].push_back(asked);
                reserved[asked->id] += asked->beats;
                asked = nullptr;
            }
            if (write_taken) {
                write_beats.push_back(writes.front());
                writes.pop_front();
                writing = false;
            }
            if (beat_taken) {
                beat = false;
                if (++sent == write_beats.front()->beats) {
                    sent = 0;
                    answers.push_back(write_beats.front());
                    write_beats.pop_front();
                }
            }
        }
        return 0;
    }

    const m890::HbmMemory& memory() const { return memory_; }
    const char* breach() const { return checker_.breach().c_str(); }

  private:
    // Lets the writes that are queued reach the banks.
    void drain() {
        m890::AxiRequest in = {};
        m890::AxiResponse out = {};
        for (int cycle = 0; cycle < kDrain; ++cycle) memory_.clock(in, out);
    }

    static constexpr int kDrain = 10000;  // cycles, more than a full queue takes

    unsigned port_;
    m890::HbmMemory memory_;
    m890::Checker checker_;
    std::vector<uint8_t> strobe_;
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void* player_create(uint8_t* memory, uint64_t size, uint64_t port, const m890::HbmParameters* p) {
    return new Player(memory, size, static_cast<unsigned>(port), *p);
}
EXPORT void player_destroy(void* player) { delete static_cast<Player*>(player); }
EXPORT uint64_t player_play(void* player, const Request* requests, uint64_t count, uint64_t window,
                            uint64_t bursts, uint64_t stall, uint64_t seed, uint64_t limit,
                            uint8_t* data, uint64_t* done) {
    return static_cast<Player*>(player)->play(requests, count, window, bursts, stall, seed, limit,
                                              data, done);
}
EXPORT void player_counters(void* player, m890::PseudoChannel::Counters* counters) {
    *counters = static_cast<Player*>(player)->memory().counters();
}
EXPORT const char* player_breach(void* player) { return static_cast<Player*>(player)->breach(); }

EXPORT void player_place(const m890::HbmParameters* p, uint64_t address, m890::DramPlace* place) {
    *place = m890::AddressMap(*p).place(address);
}

// The commands of one channel for accesses in the order of their clocks, up to clock `until`.
// Returns how many there are; the first `room` are written. An access waits for room in its queue.
EXPORT uint64_t player_schedule(const m890::HbmParameters* p, const Access* accesses, uint64_t count,
                                uint64_t until, m890::DramCommand* commands, uint64_t room) {
    std::vector<m890::DramCommand> log;
    std::vector<m890::PseudoChannel> channels;
    for (unsigned n = 0; n < p->per_channel; ++n) channels.emplace_back(*p, n, &log);
    uint64_t next = 0;
    for (uint64_t clock = 0; clock < until; ++clock) {
        while (next < count && accesses[next].clock <= clock &&
               channels[accesses[next].channel].room(accesses[next].write)) {
            const Access& a = accesses[next++];
            channels[a.channel].push({static_cast<uint32_t>(a.bank), a.row, a.write != 0, nullptr, 0, 0},
                                     static_cast<int64_t>(clock));
        }
        bool row_bus = true, column_bus = true;
        for (uint64_t n = 0; n < channels.size(); ++n) {
            channels[(n + clock) % channels.size()].clock(static_cast<int64_t>(clock), row_bus, column_bus);
        }
        m890::DramAccess access;
        for (auto& channel : channels) {
            while (channel.finished(static_cast<int64_t>(clock), &access)) {}
        }
    }
    std::copy_n(log.begin(), std::min<uint64_t>(room, log.size()), commands);
    return log.size();
}
