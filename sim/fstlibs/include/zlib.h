// The two zlib functions that Verilator's FST writer calls, so that waves need no package beside
// the compiler. The stream is valid zlib with stored blocks: the writer keeps the raw bytes when
// they are no longer than the stream, and only times and first values pass here.
#ifndef M890_ZLIB_H
#define M890_ZLIB_H

#include <stdint.h>
#include <string.h>

typedef unsigned char Bytef;
typedef unsigned long uLong;
typedef unsigned long uLongf;

#define Z_OK 0
#define Z_BUF_ERROR (-5)

static inline uLong compressBound(uLong size) { return size + 5 * (size / 65535 + 1) + 6; }

static inline int compress2(Bytef* target, uLongf* target_size, const Bytef* source, uLong size,
                            int /*level*/) {
    if (*target_size < compressBound(size)) return Z_BUF_ERROR;
    Bytef* at = target;
    *at++ = 0x78;
    *at++ = 0x01;
    uLong done = 0;
    do {
        const uLong count = size - done < 65535 ? size - done : 65535;
        *at++ = done + count == size;  // last block, stored
        *at++ = static_cast<Bytef>(count & 255);
        *at++ = static_cast<Bytef>(count >> 8);
        *at++ = static_cast<Bytef>(~count & 255);
        *at++ = static_cast<Bytef>(~count >> 8 & 255);
        if (count) memcpy(at, source + done, count);
        at += count;
        done += count;
    } while (done < size);
    uint32_t a = 1, b = 0;  // Adler-32
    for (uLong i = 0; i < size; ++i) {
        a = (a + source[i]) % 65521;
        b = (b + a) % 65521;
    }
    const uint32_t sum = b << 16 | a;
    for (int shift = 24; shift >= 0; shift -= 8) *at++ = static_cast<Bytef>(sum >> shift & 255);
    *target_size = static_cast<uLongf>(at - target);
    return Z_OK;
}

#endif
