// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "huffman.h"

#include <algorithm>
#include <iterator>

namespace fast_loader {

namespace {

constexpr int kMaxDcSize = 11;    // T.81, Table F.1
constexpr int kZeroRun = 15;      // run of a symbol of size 0 that stands for 16 zeros (F.1.2.2.1)

struct Meaning {
    int size;  // magnitude bits
    int step;
};

Meaning meaning_of(int symbol, bool is_dc) {
    if (is_dc) return {symbol, 1};
    const int run = symbol >> 4, size = symbol & 15;
    if (size == 0 && run != kZeroRun) return {0, kEndOfBlock};
    return {size, run + 1};
}

// Fills the entries that begin with one code; what follows it in an index are magnitude bits.
void fill_entries(HuffmanTable& table, int code, int length, Meaning meaning) {
    const int free_bits = kLookupBits - length;
    const int first = code << free_bits, count = 1 << free_bits;
    const uint32_t total = static_cast<uint32_t>(length + meaning.size);
    const uint32_t positive = static_cast<uint32_t>(meaning.size) << 8 | total;
    const auto bias = static_cast<uint16_t>(1 - (1 << meaning.size));
    const uint32_t negative = positive | static_cast<uint32_t>(bias) << 16;
    uint32_t* const entries = table.entries + first;
    // The first magnitude bit is the sign: 0 for minus (T.81, F.2.2.1, EXTEND).
    const int half = meaning.size == 0 ? 0 : count / 2;
    std::fill(entries, entries + half, negative);
    std::fill(entries + half, entries + count, positive);
    uint8_t* const steps = table.steps + first;
    std::fill(steps, steps + count, static_cast<uint8_t>(meaning.step));
}

// Chains the symbols of an index as long as their codes lie within it.
void build_skips(HuffmanTable& table) {
    constexpr uint32_t mask = (1 << kLookupBits) - 1;
    for (uint32_t index = 0; index <= mask; ++index) {
        uint32_t bits = 0, step = 0;
        while (bits < kLookupBits && step < kEndOfBlock) {
            const uint32_t rest = index << bits & mask;
            const uint32_t entry = table.entries[rest];
            const uint32_t symbol_bits = entry & 0x3F, size = entry >> 8 & 0xFF;
            const bool inside = symbol_bits - size <= kLookupBits - bits;
            if ((entry & HuffmanTable::kLong) != 0 || (bits > 0 && !inside)) break;
            if (bits + symbol_bits > kLookupMaxBits || step + table.steps[rest] > 255) break;
            bits += symbol_bits;
            step += table.steps[rest];
        }
        table.skips[index] = static_cast<uint16_t>(
            bits == 0 ? HuffmanTable::kLong : bits | step << 8);
    }
}

}  // namespace

Status build_table(const HuffmanSpec& spec, bool is_dc, HuffmanTable& table) {
    table.is_dc = is_dc;
    std::copy(spec.values.begin(), spec.values.end(), table.values);
    std::fill(std::begin(table.entries), std::end(table.entries), HuffmanTable::kLong);
    std::copy(kZigzag.begin(), kZigzag.end(), table.natural);
    std::fill(table.natural + 64, std::end(table.natural), uint8_t{64});
    table.shortest_long = 17;
    int code = 0, index = 0;
    for (int length = 1; length <= 16; ++length, code <<= 1) {
        const int count = spec.counts[length - 1];
        if (code + count > 1 << length) return Status::kCorrupt;
        table.value_shifts[length] = index - code;
        for (int i = 0; i < count; ++i, ++code, ++index) {
            const Meaning meaning = meaning_of(spec.values[index], is_dc);
            if (is_dc && meaning.size > kMaxDcSize) return Status::kCorrupt;
            // The look-up must see the sign.
            const int seen = length + (meaning.size > 0 ? 1 : 0);
            if (seen <= kLookupBits && length + meaning.size <= kLookupMaxBits)
                fill_entries(table, code, length, meaning);
            else
                table.shortest_long = std::min(table.shortest_long, length);
        }
        table.code_ends[length] = code;
    }
    if (!is_dc) build_skips(table);
    return Status::kOk;
}

Symbol decode_long(const HuffmanTable& table, uint64_t window) {
    // T.81, Figure F.16
    for (int length = table.shortest_long; length <= 16; ++length) {
        const int code = static_cast<int>(window >> (64 - length));
        if (code >= table.code_ends[length]) continue;
        const int symbol = table.values[static_cast<uint8_t>(code + table.value_shifts[length])];
        const Meaning meaning = meaning_of(symbol, table.is_dc);
        int value = 0;
        if (meaning.size > 0) {
            value = static_cast<int>(window << length >> (64 - meaning.size));
            if (value < 1 << (meaning.size - 1)) value += 1 - (1 << meaning.size);
        }
        return {length + meaning.size, meaning.step, value};
    }
    return {16, kBadCode, 0};
}

}  // namespace fast_loader
