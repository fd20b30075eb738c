// SPDX-FileCopyrightText: The image classification package authors
// SPDX-License-Identifier: Apache-2.0
#include "crop_decoder.h"

#include <algorithm>
#include <climits>
#include <cmath>

namespace fast_loader {

namespace {

constexpr int kBlock = 8;
constexpr int kMaxStep = 2047;  // of quantisation, for products of 16 bits

int ceil_div(int a, int b) { return (a + b - 1) / b; }

bool is_valid(const CropRequest& r, const JpegHeader& header) {
    return 0 <= r.bound_left && r.bound_right <= header.width && 0 <= r.bound_top &&
           r.bound_bottom <= header.height && r.bound_left <= r.left && r.left < r.right &&
           r.right <= r.bound_right && r.bound_top <= r.top && r.top < r.bottom &&
           r.bottom <= r.bound_bottom && r.width > 0 && r.height > 0 && r.output != nullptr;
}

// T.81, B.2.4.1, and the scale factors of the fast inverse DCT: cos(k pi / 16) sqrt(2).
bool scale_quant(const QuantTable& table, ScaledQuant& scaled) {
    static constexpr double factors[8] = {1.0,         1.387039845, 1.306562965, 1.175875602,
                                          1.0,         0.785694958, 0.541196100, 0.275899379};
    for (int i = 0; i < 64; ++i) {
        const int step = table.steps[static_cast<size_t>(i)];
        if (step > kMaxStep) return false;
        // F * step * 16 * (factor / 4): the 1/8 of the transform, and 5 fractional bits.
        scaled.steps[i] = static_cast<int16_t>(step << 4);
        scaled.scales[i] =
            static_cast<int16_t>(std::lrint(8192.0 * factors[i / 8] * factors[i % 8]));
    }
    return true;
}

}  // namespace

Status CropDecoder::start(const uint8_t* data, size_t size, const CropRequest& request) {
    header_ = JpegHeader();
    status_ = read_header(data, size, header_);
    if (status_ == Status::kOk) status_ = plan(request);
    if (status_ == Status::kOk) status_ = prepare_tables();
    if (status_ == Status::kOk)
        status_ = scan_.extract(data + header_.scan_offset, size - header_.scan_offset);
    if (status_ != Status::kOk) return status_;
    row_ = mcu_ = next_output_ = 0;
    interval_ = 0;
    interval_left_ = header_.restart_interval > 0 ? header_.restart_interval : INT_MAX;
    lane_ = Lane();
    lane_.position = scan_.first_bit(0);
    lane_.limit = scan_.last_bit(0);
    lane_.coefficients = coefficients_.data();
    lane_.components = scan_components_.data();
    begin_stretch();
    if (lane_.damaged) fail();
    return status_;
}

// A damaged lane. What ends too early in the last interval is a file that was cut off.
bool CropDecoder::fail() {
    const bool overrun = lane_.position > lane_.limit;
    const bool last = interval_ + 1 == scan_.intervals();
    status_ = overrun && last ? Status::kTruncated : Status::kCorrupt;
    return false;
}

Status CropDecoder::plan(const CropRequest& request) {
    if (!is_valid(request, header_)) return Status::kBadCrop;
    request_ = request;
    const Component& luma = header_.components[0];
    h_max_ = luma.h;
    v_max_ = luma.v;
    mcus_per_row_ = ceil_div(header_.width, kBlock * h_max_);
    build_taps(request);
    blocks_per_mcu_ = 0;
    uint32_t offset = 0;
    for (int i = 0; i < header_.num_components; ++i) {
        Plane& plane = planes_[static_cast<size_t>(i)];
        prepare_plane(plane, header_.components[static_cast<size_t>(i)]);
        plane.offset = offset;
        offset += static_cast<uint32_t>(plane.v * plane.slots * kBlockSize);
        blocks_per_mcu_ += plane.h * plane.v;
        first_row_ = i == 0 ? plane.first_row / plane.v
                            : std::min(first_row_, plane.first_row / plane.v);
        rows_end_ = i == 0 ? ceil_div(plane.rows_end, plane.v)
                           : std::max(rows_end_, ceil_div(plane.rows_end, plane.v));
    }
    if (coefficients_.size() < offset) coefficients_.resize(offset);
    inputs_.resize(static_cast<size_t>(kMaxComponents * std::max(taps_y_[0].stride, 4)));
    prepare_targets();
    return Status::kOk;
}

// A crop that is much larger than the output is decoded at a fraction of its size: the resize then
// still averages at least three samples each way, and the difference is below that of rounding.
void CropDecoder::build_taps(const CropRequest& request) {
    const double gap = std::min((request.right - request.left) / request.width,
                                (request.bottom - request.top) / request.height);
    reduction_ = gap >= 24.0 ? 8 : gap >= 12.0 ? 4 : gap >= 6.0 ? 2 : 1;
    const double scale = 1.0 / reduction_;
    const auto low = [&](int bound) { return bound / reduction_; };
    const auto high = [&](int bound) { return ceil_div(bound, reduction_); };
    const Stretch x{request.left * scale,     request.right * scale, low(request.bound_left),
                    high(request.bound_right), request.width,        request.flip};
    const Stretch y{request.top * scale,        request.bottom * scale, low(request.bound_top),
                    high(request.bound_bottom), request.height,         false};
    const int width = high(header_.width), height = high(header_.height);
    taps_x_[0].build(request.filter, x, {1, width});
    taps_y_[0].build(request.filter, y, {1, height});
    if (h_max_ == 2) taps_x_[1].build(request.filter, x, {2, ceil_div(width, 2)});
    if (v_max_ == 2) taps_y_[1].build(request.filter, y, {2, ceil_div(height, 2)});
}

void CropDecoder::prepare_plane(Plane& plane, const Component& component) {
    const int lanes = kernels_.lanes;
    plane.h = component.h;
    plane.v = component.v;
    int h_ratio = h_max_ / plane.h, v_ratio = v_max_ / plane.v;
    plane.size = kBlock / reduction_;
    if (reduction_ > 1 && h_ratio == 2 && v_ratio == 2) {
        // Twice as many samples of each block instead of interpolating between half as many.
        plane.size *= 2;
        h_ratio = v_ratio = 1;
    }
    plane.columns = &taps_x_[h_ratio - 1];
    plane.lines = &taps_y_[v_ratio - 1];
    plane.first_column = plane.columns->begin / plane.size;
    plane.columns_end = ceil_div(plane.columns->end, plane.size);
    plane.first_row = plane.lines->begin / plane.size;
    plane.rows_end = ceil_div(plane.lines->end, plane.size);
    // The inverse DCT takes several blocks at once; one place more for what comes behind a block.
    const int group = lanes / kBlock;
    plane.slots = ceil_div(plane.columns_end - plane.first_column + 1, group) * group;
    const auto strip = static_cast<size_t>(plane.slots * plane.size * lanes);
    if (plane.strip.size() < strip) plane.strip.resize(strip);
    // A plane may be two strips ahead of another one that has half as many lines.
    int capacity = 1;
    while (capacity < plane.lines->stride + 4 * lanes) capacity *= 2;
    const int width = ceil_div(request_.width, kMaxLanes) * kMaxLanes;
    const auto ring = static_cast<size_t>(capacity) * static_cast<size_t>(width);
    if (plane.ring_lines.size() < ring) plane.ring_lines.resize(ring);
    plane.ring = {plane.ring_lines.data(), width, capacity - 1};
    plane.lines_done = plane.first_row * plane.size;
}

// The order of the blocks in a row of MCUs (T.81, A.2.3), and where each one goes.
void CropDecoder::prepare_targets() {
    targets_.clear();
    skipped_.clear();
    for (int mcu = 0; mcu < mcus_per_row_; ++mcu) {
        for (int i = 0; i < header_.num_components; ++i) {
            const Plane& plane = planes_[static_cast<size_t>(i)];
            for (int block = 0; block < plane.h * plane.v; ++block) {
                const int column = mcu * plane.h + block % plane.h - plane.first_column;
                const int row = block / plane.h;
                const bool inside = column >= 0 && column < plane.columns_end - plane.first_column;
                const auto slot = static_cast<uint32_t>((row * plane.slots + column) * kBlockSize);
                const auto component = static_cast<uint32_t>(i);
                targets_.push_back({inside ? plane.offset + slot : kSkipped, component});
                skipped_.push_back({kSkipped, component});
            }
        }
    }
}

Status CropDecoder::prepare_tables() {
    bool dc_built[kTables] = {}, ac_built[kTables] = {};
    for (int i = 0; i < header_.num_components; ++i) {
        const Component& component = header_.components[static_cast<size_t>(i)];
        const size_t dc = component.dc_table, ac = component.ac_table;
        if (!dc_built[dc]) {
            const Status status = build_table(header_.dc[dc], true, dc_tables_[dc]);
            if (status != Status::kOk) return status;
            dc_built[dc] = true;
        }
        if (!ac_built[ac]) {
            const Status status = build_table(header_.ac[ac], false, ac_tables_[ac]);
            if (status != Status::kOk) return status;
            ac_built[ac] = true;
        }
        scan_components_[static_cast<size_t>(i)] = {&dc_tables_[dc], &ac_tables_[ac], 0};
        if (!scale_quant(header_.quant[component.quant], planes_[static_cast<size_t>(i)].quant))
            return Status::kUnsupported;
    }
    return Status::kOk;
}

// Lets the lane go on to the end of the row or of the restart interval.
void CropDecoder::begin_stretch() {
    const std::vector<BlockTarget>& targets = row_ < first_row_ ? skipped_ : targets_;
    const int mcus = std::min(mcus_per_row_ - mcu_, interval_left_);
    lane_.target = targets.data() + mcu_ * blocks_per_mcu_;
    lane_.end = lane_.target + mcus * blocks_per_mcu_;
    mcu_ += mcus;
    interval_left_ -= mcus;
    kernels_.begin_lane(lane_);
}

bool CropDecoder::advance() {
    if (lane_.damaged) return fail();
    if (mcu_ == mcus_per_row_) {
        if (row_ >= first_row_) {
            for (int i = 0; i < header_.num_components; ++i) {
                Plane& plane = planes_[static_cast<size_t>(i)];
                for (int v = 0; v < plane.v; ++v) {
                    const int block_row = row_ * plane.v + v;
                    if (block_row < plane.first_row || block_row >= plane.rows_end) continue;
                    transform_row(plane, block_row,
                                  coefficients_.data() + plane.offset +
                                      v * plane.slots * kBlockSize);
                }
            }
            write_lines();
        }
        mcu_ = 0;
        if (++row_ == rows_end_) return false;
    }
    if (interval_left_ == 0) {
        if (++interval_ >= scan_.intervals()) {
            status_ = Status::kCorrupt;
            return false;
        }
        interval_left_ = header_.restart_interval;
        lane_.position = scan_.first_bit(interval_);
        lane_.limit = scan_.last_bit(interval_);
        for (ScanComponent& component : scan_components_) component.prediction = 0;
    }
    begin_stretch();
    return lane_.damaged ? fail() : true;
}

// One row of blocks becomes lines of the plane's strip; a full strip becomes lines of its ring.
void CropDecoder::transform_row(Plane& plane, int block_row, const int16_t* blocks) {
    const int line = (block_row - plane.first_row) * plane.size;
    const int lane = line % kernels_.lanes;
    kernels_.inverse_dct(blocks, plane.columns_end - plane.first_column, plane.size,
                         plane.quant, {plane.strip.data(), lane});
    const bool last = block_row + 1 == plane.rows_end;
    if (lane + plane.size < kernels_.lanes && !last) return;
    kernels_.resize_columns(plane.strip.data(), plane.first_column * plane.size,
                            plane.columns->view(), plane.lines_done, plane.ring);
    plane.lines_done += lane + plane.size;
}

// Writes the output lines whose inputs are complete.
void CropDecoder::write_lines() {
    for (; next_output_ < request_.height; ++next_output_) {
        LineInputs inputs[kMaxComponents];
        for (int i = 0; i < header_.num_components; ++i) {
            const Plane& plane = planes_[static_cast<size_t>(i)];
            const auto at = static_cast<size_t>(next_output_);
            const int count = plane.lines->count[at];
            if (plane.lines->first[at] + count > plane.lines_done) return;
            inputs[i] = {nullptr, &plane.lines->weights[at * static_cast<size_t>(
                                      plane.lines->stride)], count, plane.lines->halved};
        }
        size_t used = 0;
        for (int i = 0; i < header_.num_components; ++i) {
            const Plane& plane = planes_[static_cast<size_t>(i)];
            const int first = plane.lines->first[static_cast<size_t>(next_output_)];
            inputs[i].lines = inputs_.data() + used;
            for (int j = 0; j < inputs[i].count; ++j)
                inputs_[used++] = plane.ring.line(first + j);
        }
        kernels_.write_line(inputs, header_.num_components, request_.width,
                            request_.output + static_cast<int64_t>(next_output_) *
                                                  request_.width * 3);
    }
}

}  // namespace fast_loader
