// The two LZ4 functions that Verilator's FST writer calls, in the LZ4 block format, so that waves
// need no package beside the compiler. Greedy matching over a hash table, like LZ4's fast level.
#ifndef M890_LZ4_H
#define M890_LZ4_H

#include <stdint.h>
#include <string.h>

#include <vector>

static inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

namespace m890_lz4 {

struct Output {
    uint8_t* at;
    uint8_t* end;
    bool full = false;

    void byte(unsigned value) {
        if (at < end) *at++ = static_cast<uint8_t>(value);
        else full = true;
    }
    void length(int rest) {  // what does not fit into the token's four bits
        for (; rest >= 255; rest -= 255) byte(255);
        byte(static_cast<unsigned>(rest));
    }
    // Literals, then a match of `match` bytes (none when 0) that lies `offset` bytes back.
    void sequence(const uint8_t* literals, int count, int match, int offset) {
        const int low = count < 15 ? count : 15;
        const int high = match ? (match - 4 < 15 ? match - 4 : 15) : 0;
        byte(static_cast<unsigned>(low << 4 | high));
        if (low == 15) length(count - 15);
        if (end - at < count) { full = true; return; }
        if (count) memcpy(at, literals, static_cast<size_t>(count));
        at += count;
        if (!match) return;
        byte(static_cast<unsigned>(offset & 255));
        byte(static_cast<unsigned>(offset >> 8));
        if (high == 15) length(match - 4 - 15);
    }
};

static inline uint32_t word(const uint8_t* p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

}  // namespace m890_lz4

// Returns the compressed size, or 0 when it does not fit into `capacity`.
static inline int LZ4_compress_default(const char* source, char* target, int size, int capacity) {
    using namespace m890_lz4;
    const uint8_t* const in = reinterpret_cast<const uint8_t*>(source);
    Output out{reinterpret_cast<uint8_t*>(target), reinterpret_cast<uint8_t*>(target) + capacity};
    int bits = 6;  // small inputs (most signals) get a small table
    while (bits < 14 && (1 << bits) < size) ++bits;
    std::vector<int> table(static_cast<size_t>(1) << bits, -1);
    int start = 0;  // of the literals that are not written yet
    // The format: a match starts 12 bytes before the end at the latest, the last 5 are literals.
    for (int i = 0; i < size - 12;) {
        const uint32_t here = word(in + i);
        int& entry = table[here * 2654435761u >> (32 - bits)];
        const int seen = entry;
        entry = i;
        if (seen < 0 || i - seen > 65535 || word(in + seen) != here) {
            i += 1 + ((i - start) >> 6);  // faster through what does not compress
            continue;
        }
        int match = 4;
        while (i + match < size - 5 && in[seen + match] == in[i + match]) ++match;
        out.sequence(in + start, i - start, match, i - seen);
        i += match;
        start = i;
    }
    out.sequence(in + start, size - start, 0, 0);
    return out.full ? 0 : static_cast<int>(out.at - reinterpret_cast<uint8_t*>(target));
}

#endif
