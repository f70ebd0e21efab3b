// One pseudo-channel of an HBM3-like DRAM: banks, timing, refresh, and the order of its commands.
//
// Everything counts clocks of the memory's command clock. A pseudo-channel gets at most one row
// command (ACT, PRE, REF) and one column command (RD, WR) per clock, from buses that it may share.
#ifndef M890_DRAM_H
#define M890_DRAM_H

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

namespace m890 {

// As m890.sim.rtl.hbm declares it; the meaning of every field stands there.
struct HbmParameters {
    uint64_t clock_mhz, core_mhz, path;
    uint64_t pseudo_channels, per_channel, groups, banks, burst_bytes;
    uint64_t burst, read_latency, write_latency, rcd_read, rcd_write, rp, ras, rc;
    uint64_t ccd_s, ccd_l, rrd_s, rrd_l, faw, rtp, wr, wtr_s, wtr_l, rtw;
    uint64_t refresh, refi, rfc, rfc_bank, rrefd;
    uint64_t read_queue, write_queue, drain_from, turn, patience;
    uint64_t stripe, hash, slices[16];  // slices: field * 256 + bits, lowest first, 0 ends
};

enum class Refresh : uint64_t { NONE = 0, ALL_BANKS = 1, PER_BANK = 2 };

struct DramCommand {  // as m890.sim.rtl.hbm declares it
    enum Kind : uint64_t { ACT, PRE, READ, WRITE, REFRESH_BANK, REFRESH_ALL, PRE_ALL };
    uint64_t clock, channel, kind, bank, row;
};

struct DramAccess {
    uint32_t bank;  // group * banks per group + bank
    uint64_t row;
    bool write;
    void* owner;     // whom it is for,
    uint32_t index;  // and which part of it
    int64_t since;   // clock in which it came
};

class PseudoChannel {
  public:
    struct Counters {
        uint64_t reads = 0, writes = 0, activations = 0, refreshes = 0, turns = 0;
        void add(const Counters& other) {
            reads += other.reads;
            writes += other.writes;
            activations += other.activations;
            refreshes += other.refreshes;
            turns += other.turns;
        }
    };

    PseudoChannel(const HbmParameters& p, unsigned number, std::vector<DramCommand>* log = nullptr)
        : p_(p), number_(number), log_(log), bank_(p.groups * p.banks), group_(p.groups) {
        for (auto& clock : window_) clock = -static_cast<int64_t>(p.faw);
        reads_.reserve(p.read_queue);
        writes_.reserve(p.write_queue);
        const uint64_t interval = refresh_interval();
        // Pseudo-channels take turns, so that a stream over all of them meets one refresh at a time.
        refresh_at_ = static_cast<int64_t>(interval * (number_ + 1) / p.pseudo_channels);
    }

    bool room(bool write) const {
        return write ? writes_.size() < p_.write_queue : reads_.size() < p_.read_queue;
    }
    void push(DramAccess access, int64_t now) {
        access.since = now;
        (access.write ? writes_ : reads_).push_back(access);
    }
    const Counters& counters() const { return counters_; }

    // One clock. A command bus that is used is no longer free for the others that share it.
    void clock(int64_t now, bool& row_bus, bool& column_bus) {
        due(now);
        if (reads_.empty() && writes_.empty() && !refresh_due_) return;
        choose_direction();
        const Choice choice = choose(now);
        if (column_bus && choice.column >= 0) {
            column_bus = false;
            access(now, static_cast<size_t>(choice.column));
        }
        if (!row_bus) return;
        if (refresh_due_ && refresh(now)) {
            row_bus = false;
        } else if (choice.bank >= 0) {
            row_bus = false;
            if (bank_[choice.bank].row >= 0) precharge(now, choice.bank);
            else activate(now, choice.bank, choice.row);
        }
    }

    // The next access whose data have passed the bus by `now`; false if there is none.
    bool finished(int64_t now, DramAccess* access) {
        if (done_.empty() || done_.front().first > now) return false;
        *access = done_.front().second;
        done_.pop_front();
        return true;
    }

  private:
    struct Bank {
        int64_t row = -1;  // open row, -1: closed
        int64_t act = 0, pre = 0, read = 0, write = 0;  // earliest clocks of the next command
    };
    struct Group {
        int64_t act = 0, read = 0, write = 0;
    };
    struct Choice {
        int column = -1;    // place in the queue of the access to serve
        int bank = -1;      // bank to precharge if it is open, else to activate with `row`
        uint64_t row = 0;
    };

    static void later(int64_t& clock, uint64_t now, uint64_t wait) {
        clock = std::max(clock, static_cast<int64_t>(now + wait));
    }
    Group& group(uint32_t bank) { return group_[bank / p_.banks]; }
    void log(int64_t now, DramCommand::Kind kind, uint64_t bank, uint64_t row) {
        if (log_) log_->push_back({static_cast<uint64_t>(now), number_, kind, bank, row});
    }

    // Writes wait until many are there, and each direction keeps the bus for `turn` accesses while
    // the other waits, so that the bus turns rarely and neither starves.
    void choose_direction() {
        const bool over = served_ >= p_.turn;
        const bool other = writing_ ? writes_.empty() || (over && !reads_.empty())
                                    : !writes_.empty() && (reads_.empty() ||
                                                           (over && writes_.size() >= p_.drain_from));
        if (!other || (reads_.empty() && writes_.empty())) return;
        writing_ = !writing_;
        served_ = 0;
        ++counters_.turns;
    }

    // First ready, first come: the oldest access whose row is open and whose time has come; and the
    // oldest one that needs a row command which may be given now. A row stays open while something
    // in the queue wants it, unless an older access has waited for `patience` clocks.
    Choice choose(int64_t now) const {
        Choice choice;
        const auto& queue = writing_ ? writes_ : reads_;
        const int64_t any = writing_ ? write_ : read_;
        uint64_t hit = 0, missed = 0, blocked = blocked_;
        int waiting[64];  // the oldest access of every bank that is closed or has another row open
        int count = 0;
        for (size_t n = 0; n < queue.size(); ++n) {
            const DramAccess& a = queue[n];
            const uint64_t bit = 1ull << a.bank;
            if (blocked & bit) continue;
            const Bank& bank = bank_[a.bank];
            if (bank.row == static_cast<int64_t>(a.row)) {
                hit |= bit;
                if (choice.column < 0) {
                    const Group& group = group_[a.bank / p_.banks];
                    const int64_t from = writing_ ? std::max(bank.write, group.write)
                                                  : std::max(bank.read, group.read);
                    if (std::max(from, any) <= now) choice.column = static_cast<int>(n);
                }
            } else if (!(missed & bit)) {
                missed |= bit;
                waiting[count++] = static_cast<int>(n);
                if (now - a.since > static_cast<int64_t>(p_.patience)) blocked |= bit;
            }
        }
        for (int n = 0; n < count && choice.bank < 0; ++n) {
            const DramAccess& a = queue[waiting[n]];
            const Bank& bank = bank_[a.bank];
            const bool may = bank.row >= 0 ? !(hit & 1ull << a.bank) && bank.pre <= now
                                           : may_activate(a.bank, now);
            if (!may) continue;
            choice.bank = static_cast<int>(a.bank);
            choice.row = a.row;
        }
        return choice;
    }

    bool may_activate(uint32_t bank, int64_t now) const {
        const int64_t from = std::max(std::max(bank_[bank].act, group_[bank / p_.banks].act), act_);
        return std::max(from, window_[oldest_] + static_cast<int64_t>(p_.faw)) <= now;
    }

    void activate(int64_t now, uint32_t number, uint64_t row) {
        Bank& bank = bank_[number];
        bank.row = static_cast<int64_t>(row);
        later(bank.read, now, p_.rcd_read);
        later(bank.write, now, p_.rcd_write);
        later(bank.pre, now, p_.ras);
        later(bank.act, now, p_.rc);
        later(group(number).act, now, p_.rrd_l);
        later(act_, now, p_.rrd_s);
        window_[oldest_] = now;
        oldest_ = (oldest_ + 1) % 4;
        ++counters_.activations;
        log(now, DramCommand::ACT, number, row);
    }

    void precharge(int64_t now, uint32_t number) {
        bank_[number].row = -1;
        later(bank_[number].act, now, p_.rp);
        log(now, DramCommand::PRE, number, 0);
    }

    void access(int64_t now, size_t place) {
        auto& queue = writing_ ? writes_ : reads_;
        const DramAccess access = queue[place];
        queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(place));
        ++served_;
        Bank& bank = bank_[access.bank];
        Group& group = this->group(access.bank);
        if (writing_) {
            const uint64_t end = p_.write_latency + p_.burst;  // of the data on the bus
            later(write_, now, p_.ccd_s);
            later(group.write, now, p_.ccd_l);
            later(read_, now, end + p_.wtr_s);
            later(group.read, now, end + p_.wtr_l);
            later(bank.pre, now, end + p_.wr);
            ++counters_.writes;
        } else {
            later(read_, now, p_.ccd_s);
            later(group.read, now, p_.ccd_l);
            later(write_, now, p_.rtw);
            later(bank.pre, now, p_.rtp);
            done_.push_back({now + static_cast<int64_t>(p_.read_latency + p_.burst), access});
            ++counters_.reads;
        }
        log(now, writing_ ? DramCommand::WRITE : DramCommand::READ, access.bank, access.row);
    }

    uint64_t refresh_interval() const {
        const bool single = p_.refresh == static_cast<uint64_t>(Refresh::PER_BANK);
        return p_.refi / (single ? bank_.size() : 1);
    }

    // When a refresh is due, its banks take no more accesses until it is done.
    void due(int64_t now) {
        if (p_.refresh == static_cast<uint64_t>(Refresh::NONE) || now < refresh_at_) return;
        refresh_at_ += static_cast<int64_t>(refresh_interval());
        ++refresh_due_;
        const bool single = p_.refresh == static_cast<uint64_t>(Refresh::PER_BANK);
        blocked_ = single ? 1ull << refresh_bank_ : (2ull << (bank_.size() - 1)) - 1;
    }

    // Precharges what is open and refreshes; true if a command was given.
    bool refresh(int64_t now) {
        if (p_.refresh == static_cast<uint64_t>(Refresh::PER_BANK)) {
            const uint32_t number = refresh_bank_;
            Bank& bank = bank_[number];
            if (bank.row >= 0) {
                if (bank.pre > now) return false;
                precharge(now, number);
                return true;
            }
            if (!may_activate(number, now)) return false;
            later(bank.act, now, p_.rfc_bank);
            later(act_, now, p_.rrefd);
            log(now, DramCommand::REFRESH_BANK, number, 0);
            refresh_bank_ = (number + 1) % static_cast<uint32_t>(bank_.size());
            ++counters_.refreshes;
            blocked_ = --refresh_due_ ? 1ull << refresh_bank_ : 0;
            return true;
        }
        bool open = false;
        int64_t pre = 0, act = 0;
        for (const Bank& bank : bank_) {
            open |= bank.row >= 0;
            if (bank.row >= 0) pre = std::max(pre, bank.pre);
            act = std::max(act, bank.act);
        }
        if (open ? pre > now : act > now) return false;
        for (Bank& bank : bank_) {
            bank.row = -1;
            later(bank.act, now, open ? p_.rp : p_.rfc);
        }
        log(now, open ? DramCommand::PRE_ALL : DramCommand::REFRESH_ALL, 0, 0);
        if (open) return true;
        ++counters_.refreshes;
        if (!--refresh_due_) blocked_ = 0;
        return true;
    }

    const HbmParameters p_;
    const uint64_t number_;
    std::vector<DramCommand>* log_;
    std::vector<Bank> bank_;
    std::vector<Group> group_;
    int64_t act_ = 0, read_ = 0, write_ = 0;  // earliest clocks in any bank
    int64_t window_[4];                       // clocks of the last four activations
    unsigned oldest_ = 0;
    bool writing_ = false;
    uint64_t served_ = 0;                        // accesses since the bus turned
    std::vector<DramAccess> reads_, writes_;  // oldest first
    std::deque<std::pair<int64_t, DramAccess>> done_;
    int64_t refresh_at_ = 0;
    uint32_t refresh_bank_ = 0, refresh_due_ = 0;
    uint64_t blocked_ = 0;  // banks that wait for a refresh
    Counters counters_;
};

}  // namespace m890

#endif
