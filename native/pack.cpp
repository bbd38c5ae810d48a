// Packing and unpacking of pruned matrices.
#include "pack.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "layer.h"

namespace pofa {
namespace {

// Tuned by measurement. A block's tile of float activations takes 48 KB with 64 tokens and 24 KB with 32, which fits in the L1
// cache. Matrices of codes multiply activations that are codes too; with them, loading and storing sums for each block of
// columns costs more than a tile of 48 KB that does not fit. Sums of a group take 6 or 12 KB. Threads that share a panel
// divide its groups among them, so groups are small: with AVX2, products of codes are up to 3 % slower than with 128 rows,
// with VNNI as fast.
constexpr uint32_t kBlockColumns = 192, kBlockColumnsOfCodes = 768;
constexpr uint32_t kGroupRows = 48;

struct Source {
  const Dense& dense;
  size_t bytes = value_bytes(dense.value_type);
  size_t together = dense.value_type == kI8 ? 4 : 1;  // entries whose values are ordered by row: quads of codes

  size_t padded(size_t count) const { return (count + together - 1) / together * together; }
  const uint8_t* at(uint32_t row, uint32_t column) const {
    return static_cast<const uint8_t*>(dense.values) + (size_t(row) * dense.columns + column) * bytes;
  }
  // Minus zero counts as zero.
  bool is_zero(uint32_t row, uint32_t column) const {
    const uint8_t* p = at(row, column);
    if (dense.value_type == kI8) return *p == 0;
    if (dense.value_type == kF16) return (read_at<uint16_t>(p, 0) & 0x7fff) == 0;
    return (read_at<uint32_t>(p, 0) & 0x7fffffff) == 0;
  }
};

struct Sections {
  std::vector<uint64_t> groups;
  std::vector<uint16_t> counts;
  std::vector<uint8_t> rows, indices, values;
};

// Indices of the lists, sorted by length, shortest first.
std::vector<uint32_t> by_length(const std::vector<std::vector<uint32_t>>& lists) {
  std::vector<uint32_t> order(lists.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return lists[a].size() < lists[b].size(); });
  return order;
}

// Columns of a unit's entries, in order. Between those that one step does not reach, there are others, with zeros.
void fill_gaps(uint32_t from, std::vector<uint32_t>* columns) {
  for (size_t e = 0; e < columns->size(); ++e) {
    const uint32_t last = e > 0 ? (*columns)[e - 1] : from;
    if ((*columns)[e] - last > 255) columns->insert(columns->begin() + e, last + 255);
  }
}

// Pairs rows with about the same number of entries, so that little padding is needed.
void pack_pairs(const Source& source, uint32_t first, uint32_t rows, uint32_t from, uint32_t to, Sections* out) {
  std::vector<std::vector<uint32_t>> columns(rows + rows % 2);
  for (uint32_t r = 0; r < rows; ++r) {
    for (uint32_t c = from; c < to; ++c)
      if (!source.is_zero(first + r, c)) columns[r].push_back(c);
    fill_gaps(from, &columns[r]);
  }
  const std::vector<uint32_t> order = by_length(columns);
  const std::vector<uint8_t> zero(source.bytes, 0);
  for (size_t i = 0; i < order.size(); i += 2) {
    const size_t count = source.padded(columns[order[i + 1]].size());
    out->counts.push_back(uint16_t(count));
    for (int j = 0; j < 2; ++j) out->rows.push_back(uint8_t(order[i + j]));
    for (size_t begin = 0; begin < count; begin += source.together)
      for (int j = 0; j < 2; ++j)
        for (size_t e = begin; e < begin + source.together; ++e) {
          const uint32_t row = order[i + j];
          const std::vector<uint32_t>& kept = columns[row];
          // Padding repeats the row's last column, because zeros compress well.
          const auto column = [&](size_t n) { return kept.empty() ? from : kept[std::min(n, kept.size() - 1)]; };
          const uint8_t* value = e < kept.size() ? source.at(first + row, column(e)) : zero.data();
          out->indices.push_back(uint8_t(column(e) - (e > 0 ? column(e - 1) : from)));
          out->values.insert(out->values.end(), value, value + source.bytes);
        }
  }
}

void pack_fours(const Source& source, uint32_t first, uint32_t rows, uint32_t from, uint32_t to, Sections* out) {
  std::vector<std::vector<uint32_t>> columns((rows + 3) / 4);
  for (uint32_t r = 0; r < rows; ++r)
    for (uint32_t c = from; c < to; ++c) {
      std::vector<uint32_t>& unit_columns = columns[r / 4];
      if (!source.is_zero(first + r, c)) unit_columns.push_back(c);
    }
  for (std::vector<uint32_t>& unit_columns : columns) {
    std::sort(unit_columns.begin(), unit_columns.end());
    unit_columns.erase(std::unique(unit_columns.begin(), unit_columns.end()), unit_columns.end());
    fill_gaps(from, &unit_columns);
  }
  const std::vector<uint8_t> zero(source.bytes, 0);
  for (uint32_t unit : by_length(columns)) {
    const size_t kept = columns[unit].size(), count = source.padded(kept);
    out->counts.push_back(uint16_t(count));
    out->rows.push_back(uint8_t(unit));
    // Padding repeats the last column, as above.
    uint32_t last = from;
    for (size_t e = 0; e < count; ++e) {
      const uint32_t column = columns[unit][std::min(e, kept - 1)];
      out->indices.push_back(uint8_t(column - last));
      last = column;
    }
    for (size_t begin = 0; begin < count; begin += source.together)
      for (uint32_t r = 4 * unit; r < 4 * unit + 4; ++r)
        for (size_t e = begin; e < begin + source.together; ++e) {
          const uint8_t* value = r < rows && e < kept ? source.at(first + r, columns[unit][e]) : zero.data();
          out->values.insert(out->values.end(), value, value + source.bytes);
        }
  }
}

template <typename T>
uint64_t append(std::vector<uint8_t>* blob, const std::vector<T>& section, size_t slack = 0) {
  blob->resize((blob->size() + 63) / 64 * 64);
  const uint64_t at = blob->size();
  const uint8_t* data = reinterpret_cast<const uint8_t*>(section.data());
  blob->insert(blob->end(), data, data + section.size() * sizeof(T));
  blob->resize(blob->size() + slack);
  return at;
}

}  // namespace

Error pack(const Dense& dense, uint32_t block_rows, uint32_t block_columns, uint32_t group_rows, std::vector<uint8_t>* blob) {
  Header h = {};
  std::memcpy(h.magic, "POFASPRS", 8);
  h.version = kVersion;
  h.header_bytes = sizeof(Header);
  h.rows = dense.rows;
  h.columns = dense.columns;
  h.block_rows = block_rows;
  h.value_type = dense.value_type;
  h.block_columns = block_columns ? block_columns : dense.value_type == kI8 ? kBlockColumnsOfCodes : kBlockColumns;
  h.group_rows = group_rows ? group_rows : kGroupRows;
  if (!dense.values || h.rows < 1 || h.columns < 1 || h.rows > kMaxSide || h.columns > kMaxSide ||
      (block_rows != 1 && block_rows != 4) || h.value_type > kI8 || h.block_columns > kMaxBlock || h.group_rows > kMaxGroup ||
      h.group_rows < 4 || h.group_rows % (block_rows == 4 ? 4 : 2))
    return kBadArgument;

  Source source{dense};
  Sections out;
  for (uint32_t first = 0; first < h.rows; first += h.group_rows) {
    out.groups.push_back(out.indices.size());
    const uint32_t rows = std::min(h.group_rows, h.rows - first);
    for (uint32_t from = 0; from < h.columns; from += h.block_columns) {
      const uint32_t to = std::min(h.columns, from + h.block_columns);
      (block_rows == 1 ? pack_pairs : pack_fours)(source, first, rows, from, to, &out);
    }
  }
  out.groups.push_back(out.indices.size());
  h.entries = out.indices.size();
  for (uint32_t r = 0; r < h.rows; ++r)
    for (uint32_t c = 0; c < h.columns; ++c) h.nonzeros += !source.is_zero(r, c);

  std::vector<float> scales(h.rows, 1.f), biases(h.rows, 0.f);
  if (dense.scales) scales.assign(dense.scales, dense.scales + h.rows);
  if (dense.biases) biases.assign(dense.biases, dense.biases + h.rows);
  blob->assign(sizeof(Header), 0);
  h.groups_offset = append(blob, out.groups);
  h.scales_offset = append(blob, scales);
  h.biases_offset = append(blob, biases);
  h.counts_offset = append(blob, out.counts);
  h.rows_offset = append(blob, out.rows);
  h.indices_offset = append(blob, out.indices, kSlack);
  h.values_offset = append(blob, out.values, kSlack);
  h.total_bytes = blob->size();
  std::memcpy(blob->data(), &h, sizeof(Header));
  h.checksum = checksum(blob->data(), blob->size());
  std::memcpy(blob->data(), &h, sizeof(Header));
  return kOk;
}

void unpack(const Matrix& m, void* values, float* scales, float* biases) {
  const Header& h = m.header;
  const size_t bytes = value_bytes(h.value_type);
  std::memset(values, 0, size_t(h.rows) * h.columns * bytes);
  for_each_value(m, [&](uint32_t row, uint32_t column, uint64_t at) {
    const uint8_t* from = m.values + at * bytes;
    // Zeros are skipped: padding would overwrite the value whose column it repeats.
    if (std::any_of(from, from + bytes, [](uint8_t byte) { return byte != 0; }))
      std::memcpy(static_cast<uint8_t*>(values) + (size_t(row) * h.columns + column) * bytes, from, bytes);
  });
  std::memcpy(scales, m.scales, size_t(h.rows) * 4);
  std::memcpy(biases, m.biases, size_t(h.rows) * 4);
}

}  // namespace pofa
