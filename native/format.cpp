// Validation and checksum of packed matrices.
#include "format.h"

namespace pofa {

size_t value_bytes(uint32_t value_type) { return value_type == kF32 ? 4 : value_type == kF16 ? 2 : 1; }

// Hashes eight bytes per step. Every step is invertible, so a single flipped bit always changes the result.
uint64_t checksum(const uint8_t* data, size_t size) {
  constexpr size_t checksum_offset = offsetof(Header, checksum);
  uint64_t hash = 0xcbf29ce484222325u ^ size;
  size_t at = 0;
  for (; at + 8 <= size; at += 8) {
    uint64_t word = at == checksum_offset ? 0 : read_at<uint64_t>(data + at, 0);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  for (; at < size; ++at) hash = (hash ^ data[at]) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

namespace {

bool in_bounds(uint64_t at, uint64_t bytes, uint64_t total) { return at <= total && bytes <= total - at; }

Error check_header(const Matrix& m, size_t size) {
  const Header& h = m.header;
  for (int i = 0; i < 8; ++i)
    if (h.magic[i] != "POFASPRS"[i]) return kBadMagic;
  if (h.version > kVersion) return kNewerVersion;
  if (h.version < kOldestVersion) return kOlderVersion;
  if (h.header_bytes != sizeof(Header)) return kBadHeader;
  if (h.total_bytes != size) return kWrongSize;
  const bool valid = h.rows >= 1 && h.rows <= kMaxSide && h.columns >= 1 && h.columns <= kMaxSide &&
                    (h.block_rows == 1 || h.block_rows == 4) && h.value_type <= kI8 && h.block_columns >= 1 &&
                    h.block_columns <= (m.in_steps() ? kMaxBlock : kMaxIndexed) && h.group_rows >= 4 &&
                    h.group_rows <= kMaxGroup && h.group_rows % (h.block_rows == 4 ? 4 : 2) == 0;
  return valid ? kOk : kBadHeader;
}

// Validates every count, row and index of every unit, which the kernel uses without bounds checks.
Error check_entries(const Matrix& m) {
  const Header& h = m.header;
  const uint32_t blocks = m.block_count();
  uint64_t entry = 0, unit = 0;
  for (uint32_t group = 0; group < m.group_count(); ++group) {
    if (read_at<uint64_t>(m.groups, group) != entry) return kBadIndex;
    const uint32_t units = m.units_in_group(group);
    for (uint32_t block = 0; block < blocks; ++block) {
      const uint32_t width = m.columns_in_block(block), most = m.in_quads() ? (width + 3) / 4 * 4 : width;
      bool seen[256] = {};
      for (uint32_t i = 0; i < units; ++i, ++unit) {
        const uint32_t count = read_at<uint16_t>(m.counts, unit);
        const uint64_t stored = uint64_t(count) * (h.block_rows == 1 ? 2 : 1);
        if (count > most || stored > h.entries - entry || (m.in_quads() && count % 4)) return kBadIndex;
        // Each row occurs once. Spare rows complete the units: at most one with 1x1, at most three with 4x1.
        for (uint32_t j = 0; j < m.rows_per_unit(); ++j) {
          const uint32_t row = m.row(unit, j);
          if (row >= units * m.rows_per_unit() || seen[row]) return kBadIndex;
          seen[row] = true;
        }
        uint32_t column[2] = {0, 0};
        for (uint32_t e = 0; e < count; ++e)
          for (uint32_t j = 0; j < stored / count; ++j) {
            const uint8_t index = m.indices[entry + (h.block_rows == 1 ? m.place_in_pair(e, j) : e)];
            column[j] = index + (m.in_steps() ? column[j] : 0);
            if (column[j] >= width) return kBadIndex;
          }
        entry += stored;
      }
    }
  }
  return entry == h.entries && read_at<uint64_t>(m.groups, m.group_count()) == entry ? kOk : kBadIndex;
}

}  // namespace

Error open_matrix(const void* blob, size_t size, Matrix* matrix) {
  const uint8_t* data = static_cast<const uint8_t*>(blob);
  if (!data || size < sizeof(Header)) return kWrongSize;
  Matrix m;
  __builtin_memcpy(&m.header, data, sizeof(Header));
  const Header& h = m.header;
  if (Error error = check_header(m, size)) return error;

  const uint64_t groups = m.group_count();
  const uint64_t units =
      m.first_unit(uint32_t(groups) - 1) + uint64_t(m.block_count()) * m.units_in_group(uint32_t(groups) - 1);
  if (h.entries > uint64_t(h.rows + 4) * (h.columns + 3ull * m.block_count())) return kBadHeader;
  const uint64_t per_entry = value_bytes(h.value_type) * h.block_rows;
  if (!in_bounds(h.groups_offset, (groups + 1) * 8, size) || !in_bounds(h.counts_offset, units * 2, size) ||
      !in_bounds(h.rows_offset, units * (h.block_rows == 1 ? 2 : 1), size) ||
      !in_bounds(h.indices_offset, h.entries + kSlack, size) ||
      !in_bounds(h.values_offset, h.entries * per_entry + kSlack, size) ||
      !in_bounds(h.scales_offset, uint64_t(h.rows) * 4, size) || !in_bounds(h.biases_offset, uint64_t(h.rows) * 4, size))
    return kBadHeader;
  if (checksum(data, size) != h.checksum) return kBadChecksum;

  m.groups = data + h.groups_offset;
  m.counts = data + h.counts_offset;
  m.unit_rows = data + h.rows_offset;
  m.indices = data + h.indices_offset;
  m.values = data + h.values_offset;
  m.scales = data + h.scales_offset;
  m.biases = data + h.biases_offset;
  if (Error error = check_entries(m)) return error;
  *matrix = m;
  return kOk;
}

void describe(const Matrix& m, uint64_t facts[6]) {
  const Header& h = m.header;
  const uint64_t values[6] = {h.rows, h.columns, h.block_rows, h.value_type, h.nonzeros, h.entries};
  __builtin_memcpy(facts, values, sizeof values);
}

}  // namespace pofa
