// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "jpeg_header.h"

#include <cstring>

namespace fast_loader {

const std::array<uint8_t, 64> kZigzag = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,   //
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,  //
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,  //
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

namespace {

// Marker codes (T.81, Table B.1).
enum Marker : uint8_t {
    kTEM = 0x01,
    kSOF0 = 0xC0,  // baseline
    kSOF1 = 0xC1,  // extended sequential, Huffman
    kDHT = 0xC4,
    kSOF15 = 0xCF,
    kJPG = 0xC8,
    kDAC = 0xCC,
    kRST0 = 0xD0,
    kRST7 = 0xD7,
    kSOI = 0xD8,
    kEOI = 0xD9,
    kSOS = 0xDA,
    kDQT = 0xDB,
    kDRI = 0xDD,
    kAPP0 = 0xE0,
    kAPP14 = 0xEE,
};

bool is_frame_header(uint8_t marker) {
    return marker >= kSOF0 && marker <= kSOF15 && marker != kDHT && marker != kJPG &&
           marker != kDAC;
}

// The bytes of one marker segment; reading beyond its end gives zeros and is remembered.
class Segment {
public:
    Segment(const uint8_t* data, size_t size) : at_(data), left_(size) {}

    size_t left() const { return left_; }
    bool overrun() const { return overrun_; }

    int byte() {
        if (left_ == 0) {
            overrun_ = true;
            return 0;
        }
        --left_;
        return *at_++;
    }

    int word() {
        const int high = byte();
        return high << 8 | byte();
    }

    bool starts_with(const char* text, size_t length) const {
        return left_ >= length && std::memcmp(at_, text, length) == 0;
    }

    int peek(size_t offset) const { return offset < left_ ? at_[offset] : -1; }

private:
    const uint8_t* at_;
    size_t left_;
    bool overrun_ = false;
};

// Goes from marker to marker (T.81, B.1.1).
class SegmentReader {
public:
    SegmentReader(const uint8_t* data, size_t size) : data_(data), size_(size) {}

    // The file starts with SOI.
    Status start() {
        if (size_ < 4) return Status::kTruncated;
        if (data_[0] != 0xFF || data_[1] != kSOI) return Status::kUnsupported;
        position_ = 2;
        return Status::kOk;
    }

    // Finds the next marker segment. Bytes between segments are skipped, as libjpeg does.
    Status next(uint8_t& marker, Segment& segment) {
        for (;;) {
            const void* found =
                position_ < size_ ? std::memchr(data_ + position_, 0xFF, size_ - position_)
                                  : nullptr;
            if (found == nullptr) return Status::kTruncated;
            position_ = static_cast<size_t>(static_cast<const uint8_t*>(found) - data_);
            while (position_ < size_ && data_[position_] == 0xFF) ++position_;
            if (position_ >= size_) return Status::kTruncated;
            marker = data_[position_++];
            if (marker != 0x00 && marker != kTEM && (marker < kRST0 || marker > kRST7)) break;
        }
        if (marker == kEOI || marker == kSOI) return Status::kCorrupt;
        if (size_ - position_ < 2) return Status::kTruncated;
        const size_t length = static_cast<size_t>(data_[position_] << 8 | data_[position_ + 1]);
        if (length < 2) return Status::kCorrupt;
        if (length > size_ - position_) return Status::kTruncated;
        segment = Segment(data_ + position_ + 2, length - 2);
        position_ += length;
        return Status::kOk;
    }

    size_t position() const { return position_; }

private:
    const uint8_t* data_;
    size_t size_;
    size_t position_ = 0;
};

// T.81, B.2.4.1
Status read_quant_tables(Segment segment, JpegHeader& header) {
    while (segment.left() > 0) {
        const int precision_and_id = segment.byte();
        const int precision = precision_and_id >> 4, id = precision_and_id & 15;
        if (precision > 1 || id >= kTables) return Status::kCorrupt;
        QuantTable& table = header.quant[id];
        for (uint8_t natural : kZigzag) {
            table.steps[natural] =
                static_cast<uint16_t>(precision == 0 ? segment.byte() : segment.word());
        }
        table.defined = true;
    }
    return segment.overrun() ? Status::kCorrupt : Status::kOk;
}

// T.81, B.2.4.2
Status read_huffman_tables(Segment segment, JpegHeader& header) {
    while (segment.left() > 0) {
        const int class_and_id = segment.byte();
        const int table_class = class_and_id >> 4, id = class_and_id & 15;
        if (table_class > 1 || id >= kTables) return Status::kCorrupt;
        HuffmanSpec& spec = table_class == 0 ? header.dc[id] : header.ac[id];
        int total = 0;
        for (uint8_t& count : spec.counts) {
            count = static_cast<uint8_t>(segment.byte());
            total += count;
        }
        if (total > 256) return Status::kCorrupt;
        for (int i = 0; i < total; ++i) spec.values[i] = static_cast<uint8_t>(segment.byte());
        spec.defined = true;
    }
    return segment.overrun() ? Status::kCorrupt : Status::kOk;
}

// T.81, B.2.2
Status read_frame(Segment segment, JpegHeader& header) {
    const int precision = segment.byte();
    header.height = segment.word();
    header.width = segment.word();
    header.num_components = segment.byte();
    if (segment.overrun() || header.width == 0) return Status::kCorrupt;
    // A height of 0 is given later, by a DNL segment (T.81, B.2.5).
    if (precision != 8 || header.height == 0) return Status::kUnsupported;
    if (header.num_components != 1 && header.num_components != 3) return Status::kUnsupported;
    for (int i = 0; i < header.num_components; ++i) {
        Component& component = header.components[i];
        component.id = static_cast<uint8_t>(segment.byte());
        const int sampling = segment.byte();
        component.h = static_cast<uint8_t>(sampling >> 4);
        component.v = static_cast<uint8_t>(sampling & 15);
        component.quant = static_cast<uint8_t>(segment.byte());
        if (component.h < 1 || component.h > 4 || component.v < 1 || component.v > 4)
            return Status::kCorrupt;
        if (component.quant >= kTables) return Status::kCorrupt;
    }
    if (segment.overrun()) return Status::kCorrupt;
    if (header.num_components == 1) {
        // The scan of one component is not interleaved: its MCU is one block (T.81, A.2.2).
        header.components[0].h = header.components[0].v = 1;
        return Status::kOk;
    }
    const Component &luma = header.components[0], &cb = header.components[1],
                    &cr = header.components[2];
    const bool in_scope = luma.h <= 2 && luma.v <= 2 && cb.h == 1 && cb.v == 1 && cr.h == 1 &&
                          cr.v == 1;
    return in_scope ? Status::kOk : Status::kUnsupported;
}

// T.81, B.2.3
Status read_scan(Segment segment, JpegHeader& header) {
    const int count = segment.byte();
    if (count < 1 || count > 4) return Status::kCorrupt;
    if (count != header.num_components) return Status::kUnsupported;  // several scans follow
    for (int i = 0; i < count; ++i) {
        Component& component = header.components[i];
        if (segment.byte() != component.id) return Status::kUnsupported;
        const int tables = segment.byte();
        component.dc_table = static_cast<uint8_t>(tables >> 4);
        component.ac_table = static_cast<uint8_t>(tables & 15);
        if (component.dc_table >= kTables || component.ac_table >= kTables)
            return Status::kCorrupt;
        if (!header.dc[component.dc_table].defined || !header.ac[component.ac_table].defined ||
            !header.quant[component.quant].defined)
            return Status::kCorrupt;
    }
    const int first = segment.byte(), last = segment.byte(), approximation = segment.byte();
    if (segment.overrun()) return Status::kCorrupt;
    return first == 0 && last == 63 && approximation == 0 ? Status::kOk : Status::kUnsupported;
}

// Which colours three components mean: the rules of libjpeg, which every reader follows.
struct ColorHints {
    bool jfif = false;
    int adobe_transform = -1;  // none

    void read_app0(const Segment& segment) { jfif |= segment.starts_with("JFIF", 5); }

    void read_app14(const Segment& segment) {
        if (segment.starts_with("Adobe", 5) && segment.left() >= 12)
            adobe_transform = segment.peek(11);
    }

    bool is_ycbcr(const JpegHeader& header) const {
        if (jfif) return true;
        if (adobe_transform >= 0) return adobe_transform != 0;
        return !(header.components[0].id == 'R' && header.components[1].id == 'G' &&
                 header.components[2].id == 'B');
    }
};

}  // namespace

Status read_header(const uint8_t* data, size_t size, JpegHeader& header) {
    SegmentReader reader(data, size);
    if (const Status status = reader.start(); status != Status::kOk) return status;
    ColorHints colors;
    bool have_frame = false;
    for (;;) {
        uint8_t marker = 0;
        Segment segment(nullptr, 0);
        Status status = reader.next(marker, segment);
        if (status != Status::kOk) return status;
        if (marker == kDQT) {
            status = read_quant_tables(segment, header);
        } else if (marker == kDHT) {
            status = read_huffman_tables(segment, header);
        } else if (marker == kDRI) {
            header.restart_interval = segment.word();
            if (segment.overrun()) status = Status::kCorrupt;
        } else if (marker == kAPP0) {
            colors.read_app0(segment);
        } else if (marker == kAPP14) {
            colors.read_app14(segment);
        } else if (is_frame_header(marker)) {
            if (marker != kSOF0 && marker != kSOF1) return Status::kUnsupported;
            status = have_frame ? Status::kCorrupt : read_frame(segment, header);
            have_frame = true;
        } else if (marker == kSOS) {
            if (!have_frame) return Status::kCorrupt;
            header.scan_offset = reader.position();
            if (header.num_components == 3 && !colors.is_ycbcr(header))
                return Status::kUnsupported;
            return read_scan(segment, header);
        }
        if (status != Status::kOk) return status;
    }
}

Status read_size(const uint8_t* data, size_t size, int& width, int& height) {
    SegmentReader reader(data, size);
    if (const Status status = reader.start(); status != Status::kOk) return status;
    for (;;) {
        uint8_t marker = 0;
        Segment segment(nullptr, 0);
        if (const Status status = reader.next(marker, segment); status != Status::kOk)
            return status;
        if (!is_frame_header(marker)) continue;
        if (marker != kSOF0 && marker != kSOF1) return Status::kUnsupported;
        JpegHeader header;
        const Status status = read_frame(segment, header);
        width = header.width;
        height = header.height;
        return status;
    }
}

}  // namespace fast_loader
