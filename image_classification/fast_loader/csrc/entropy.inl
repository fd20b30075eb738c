// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Huffman decoding of blocks (ITU-T T.81, F.2.2), one or two images at a time.
//
// A symbol's length is known only after its look-up, and the next look-up needs it: the processor
// waits for its own cache most of the time. Two images have nothing to wait for from each other, so
// decoding them in turns, a few symbols each, fills the gaps: 1.5 times as fast as one by one.
//
// Included once for each instruction set. Nothing of the standard library that could be compiled
// into a shared inline function is used here: the linker would keep any one copy for all sets.
#include <cstring>

#include "lane.h"

namespace fast_loader {
namespace {

// The 64 bits from `position` on; at least 57 of them are valid.
inline uint64_t window_at(uint64_t position) {
    uint64_t word;
    std::memcpy(&word, reinterpret_cast<const void*>(static_cast<uintptr_t>(position >> 3)), 8);
    return __builtin_bswap64(word) << (position & 7);
}

// The magnitude bits of a look-up's symbol, made signed.
inline int value_of(uint64_t window, uint32_t entry, uint64_t bits) {
    const uint64_t last_bits = window >> (-bits & 63);
    const uint64_t mask = (uint64_t{1} << (entry >> 8 & 15)) - 1;
    return static_cast<int>(last_bits & mask) + (static_cast<int32_t>(entry) >> 16);
}

// The part of a lane that changes with each symbol: few enough for registers, twice.
struct Cursor {
    uint64_t position;
    const HuffmanTable* ac;
    int16_t* block;
    int64_t k;
};

inline Cursor cursor_of(const Lane& lane) {
    return {lane.position, lane.ac, lane.block, lane.k};
}

inline void store_cursor(const Cursor& cursor, Lane& lane) {
    lane.position = cursor.position;
    lane.ac = cursor.ac;
    lane.block = cursor.block;
    lane.k = cursor.k;
}

// A block whose coefficients nobody needs has no place.
inline bool is_skipped(const Cursor& cursor) { return cursor.block == nullptr; }

// Not inline: rare, and its registers are better used elsewhere.
[[gnu::noinline, gnu::cold]] bool decode_long_symbol(Cursor& cursor) {
    const Symbol symbol = decode_long(*cursor.ac, window_at(cursor.position));
    cursor.position += static_cast<uint64_t>(symbol.bits);
    cursor.k += symbol.step;
    if (!is_skipped(cursor))
        cursor.block[cursor.ac->natural[static_cast<size_t>(cursor.k)]] =
            static_cast<int16_t>(symbol.value);
    return cursor.k >= 63;
}

// Passes over one AC coefficient. Returns whether the block has ended.
[[gnu::noinline, gnu::cold]] bool skip_symbol(Cursor& cursor) {
    const uint64_t index = window_at(cursor.position) >> (64 - kLookupBits);
    const uint32_t entry = cursor.ac->entries[index];
    if ((entry & HuffmanTable::kLong) != 0) return decode_long_symbol(cursor);
    cursor.position += entry & 0x3F;
    cursor.k += cursor.ac->steps[index];
    return cursor.k >= 63;
}

// Passes over some AC coefficients. Returns whether the block has ended.
[[gnu::always_inline]] inline bool skip_coefficients(Cursor& cursor) {
    uint64_t window = window_at(cursor.position);
    for (int i = 0; i < 57 / kLookupMaxBits; ++i) {
        const uint64_t index = window >> (64 - kLookupBits);
        const uint32_t skip = cursor.ac->skips[index];
        const int64_t k = cursor.k + (skip >> 8);
        const bool ended = k >= 63;
        // A chain that passes the last coefficient would go on into the next block.
        const bool beyond = ended && (k < kEndOfBlock || k > kEndOfBlock + 62);
        if (__builtin_expect((skip & HuffmanTable::kLong) != 0 || beyond, 0)) {
            Cursor copy = cursor;
            const bool last = skip_symbol(copy);
            cursor = copy;
            return last;
        }
        cursor.k = k;
        cursor.position += skip & 0xFF;
        window <<= skip & 63;
        if (ended) return true;
    }
    return false;
}

// Decodes up to three AC coefficients. Returns whether the block has ended.
[[gnu::always_inline]] inline bool decode_coefficients(Cursor& cursor) {
    if (is_skipped(cursor)) return skip_coefficients(cursor);
    uint64_t window = window_at(cursor.position);
    for (int i = 0; i < 57 / kLookupMaxBits; ++i) {
        const uint64_t index = window >> (64 - kLookupBits);
        const uint32_t entry = cursor.ac->entries[index];
        if (__builtin_expect(entry & HuffmanTable::kLong, 0)) {
            Cursor copy = cursor;  // its address is taken: the original stays in registers
            const bool ended = decode_long_symbol(copy);
            cursor = copy;
            return ended;
        }
        const uint64_t bits = static_cast<uint8_t>(entry);
        cursor.k += cursor.ac->steps[index];
        const int value = value_of(window, entry, bits);
        cursor.position += bits;
        window <<= bits & 63;
        cursor.block[cursor.ac->natural[static_cast<size_t>(cursor.k)]] =
            static_cast<int16_t>(value);
        if (cursor.k >= 63) return true;
    }
    return false;
}

// Decodes the DC coefficient of the lane's current block (T.81, F.2.2.1).
[[gnu::always_inline]] inline void start_block(Lane& lane, Cursor& cursor) {
    ScanComponent& component = lane.components[lane.target->component];
    const uint32_t offset = lane.target->offset;
    cursor.ac = component.ac;
    const uint64_t window = window_at(cursor.position);
    const uint32_t entry = component.dc->entries[window >> (64 - kLookupBits)];
    int difference;
    if (__builtin_expect(entry & HuffmanTable::kLong, 0)) {
        const Symbol symbol = decode_long(*component.dc, window);
        lane.damaged |= symbol.step == kBadCode;
        difference = symbol.value;
        cursor.position += static_cast<uint64_t>(symbol.bits);
    } else {
        const uint64_t bits = static_cast<uint8_t>(entry);
        difference = value_of(window, entry, bits);
        cursor.position += bits;
    }
    component.prediction += static_cast<uint32_t>(difference);
    cursor.k = 0;
    cursor.block = nullptr;
    if (offset == kSkipped) return;
    cursor.block = lane.coefficients + offset;
    std::memset(cursor.block, 0, kBlockSize * sizeof(int16_t));
    cursor.block[0] = static_cast<int16_t>(component.prediction);
}

// Goes to the next block. Returns whether the lane has stopped.
[[gnu::always_inline]] inline bool finish_block(Lane& lane, Cursor& cursor) {
    const bool run_beyond_block = cursor.k > 63 && cursor.k < kEndOfBlock;
    lane.damaged |= run_beyond_block | (cursor.position > lane.limit);
    ++lane.target;
    if (lane.stopped()) return true;
    start_block(lane, cursor);
    return lane.damaged;
}

void begin_lane(Lane& lane) {
    Cursor cursor = cursor_of(lane);
    start_block(lane, cursor);
    store_cursor(cursor, lane);
}

void decode_one(Lane& lane) {
    Cursor cursor = cursor_of(lane);
    while (!(decode_coefficients(cursor) && finish_block(lane, cursor))) {
    }
    store_cursor(cursor, lane);
}

void decode_two(Lane& first, Lane& second) {
    Cursor a = cursor_of(first), b = cursor_of(second);
    for (;;) {
        if (decode_coefficients(a) && finish_block(first, a)) break;
        if (decode_coefficients(b) && finish_block(second, b)) break;
    }
    store_cursor(a, first);
    store_cursor(b, second);
}

}  // namespace
}  // namespace fast_loader
