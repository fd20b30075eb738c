// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
// Huffman tables made for decoding (ITU-T T.81, Annex C and F.2.2).
#pragma once

#include <cstdint>

#include "jpeg_header.h"

namespace fast_loader {

// One look-up with the next kLookupBits bits answers for a whole symbol: code and magnitude bits.
// 10 bits hold all but 1 % of the symbols of photographs; 11 are slower, for the cache.
constexpr int kLookupBits = 10;

// Code and magnitude bits that a look-up may consume: three look-ups per 57 fresh bits.
constexpr int kLookupMaxBits = 19;

// Steps of the coefficient position. They differ so that the last one tells how a block ended:
// beyond 128 by "end of block", at 63 by its last coefficient, in between by a damaged run.
constexpr int kEndOfBlock = 128;
constexpr int kBadCode = 64;

struct HuffmanTable {
    // Set in an entry whose symbol the look-up cannot answer; decode_long does.
    static constexpr uint32_t kLong = 0x80;

    // Bits 0-5: code and magnitude bits to consume. Bits 8-15: magnitude bits. Bits 16-31: what to
    // add to the magnitude bits to get the value (0, or 1 - 2^size where the first bit says minus).
    alignas(64) uint32_t entries[1 << kLookupBits];
    // How far the symbol moves the position: its run of zeros plus one, or kEndOfBlock.
    uint8_t steps[1 << kLookupBits];
    // For blocks that are only passed over, as many symbols as the bits of an index show: bits 0-7
    // what they consume (kLong: none), bits 8-15 how far they move the position. AC tables only.
    uint16_t skips[1 << kLookupBits];
    // kZigzag, continued for positions behind the block with the place after its end. It lies here
    // so that the decoder needs no register for its address.
    uint8_t natural[64 + kEndOfBlock];

    int32_t shortest_long;     // length of the shortest code that the look-up does not have
    int32_t code_ends[17];     // [length]: first code of that length not in use
    int32_t value_shifts[17];  // [length]: index of a value minus its code
    uint8_t values[256];
    bool is_dc;
};

// Fills a table. Returns kCorrupt where the lengths are no prefix code or a DC symbol is beyond 11.
Status build_table(const HuffmanSpec& spec, bool is_dc, HuffmanTable& table);

struct Symbol {
    int bits;   // consumed
    int step;   // of the position; kBadCode for a code that is not in the table
    int value;  // of the coefficient
};

// Decodes any symbol at the top of `window`, which holds at least 31 valid bits.
Symbol decode_long(const HuffmanTable& table, uint64_t window);

}  // namespace fast_loader
