// Packed format of one pruned matrix, as stored in an IR's .bin: read in place, never repacked.
//
// Little-endian: a header, then sections at the offsets that the header gives. The matrix is divided into groups of rows
// and each group into blocks of columns; entries are stored in the order in which the kernel reads them:
//
//   for each group of rows
//     for each block of columns
//       for each unit (1x1: two rows with about the same number of entries; 4x1: four adjacent rows)
//         count     u16           entries per row in this block (the shorter row of a pair is padded with zeros)
//         rows      u8 u8         1x1: numbers of the two rows, relative to the group's first row
//                   u8            4x1: number of the four rows' block, relative to the group's first block of four
//         indices   u8 [...]      steps: the columns from an entry to the row's next, the first one's from the block's first;
//                                 1x1: for each entry the two rows' in turn
//         values    [...]         for each entry the rows' values in turn
//
// Entries of 8-bit values are in quads, as the products read them: of four entries, the four values of each row in turn, and
// with 1x1 the four steps. Rows are padded with zeros to a multiple of four. Where 255 columns do not reach a row's next entry,
// there is a zero between. Version 3 has quads with 4x1 alone, version 2 has none; both have columns instead of steps.
//
// Units are sorted by count, shortest first, so that the branch predictor seldom misses the end of a unit's loop. An odd
// number of rows is completed by a spare row after the group's last, which the kernel computes and discards.
#pragma once
#include <cstddef>
#include <cstdint>

// Files compiled for AVX-512 include this header too. If they emitted a function of it, the linker might keep that copy for
// all files; so every function defined here and in kernel.h is always inlined, and no copy exists.
#define POFA_INLINE inline __attribute__((always_inline))

namespace pofa {

constexpr uint32_t kVersion = 4, kOldestVersion = 2;  // written, and read
constexpr uint32_t kMaxIndexed = 256;  // columns of a block whose indices are columns: they are one byte
constexpr uint32_t kMaxBlock = 1024;   // columns of a block whose indices are steps
constexpr uint32_t kMaxGroup = 254;   // rows; one byte holds the number of any row, spare row included
constexpr uint32_t kMaxSide = 1u << 22;
constexpr size_t kSlack = 64;         // readable zeros after indices and values, for full-vector loads

enum ValueType : uint32_t { kF32 = 0, kF16 = 1, kI8 = 2 };

enum Error : int {
  kOk = 0,
  kWrongSize = -1,
  kBadMagic = -2,
  kNewerVersion = -3,
  kBadHeader = -4,
  kBadChecksum = -5,
  kBadIndex = -6,
  kBadArgument = -7,
  kOutOfMemory = -8,
  kOlderVersion = -9,
};

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint32_t rows, columns;
  uint32_t block_rows;      // 1 or 4
  uint32_t value_type;      // ValueType
  uint32_t block_columns;   // columns per block; the last block may be narrower
  uint32_t group_rows;      // rows per group; the last group may have fewer
  uint64_t total_bytes;
  uint64_t nonzeros;        // non-zero values, without padding
  uint64_t entries;         // stored indices, padding included
  uint64_t groups_offset;   // u64 [groups + 1]: first entry of each group
  uint64_t counts_offset;   // u16 [units]
  uint64_t rows_offset;     // u8 [units], 1x1: [2 * units]
  uint64_t indices_offset;  // u8 [entries]
  uint64_t values_offset;   // value_type [entries * block_rows]
  uint64_t scales_offset;   // f32 [rows]
  uint64_t biases_offset;   // f32 [rows]
  uint64_t checksum;        // of the packed matrix without this field
};
static_assert(sizeof(Header) == 128 && offsetof(Header, checksum) == 120, "the header's layout is part of the format");

// View of a validated packed matrix; owns nothing.
struct Matrix {
  Header header;
  const uint8_t *groups, *counts, *unit_rows, *indices, *values, *scales, *biases;
  POFA_INLINE uint32_t rows() const { return header.rows; }
  POFA_INLINE uint32_t columns() const { return header.columns; }
  POFA_INLINE uint32_t group_count() const { return (header.rows + header.group_rows - 1) / header.group_rows; }
  POFA_INLINE uint32_t block_count() const { return (header.columns + header.block_columns - 1) / header.block_columns; }
  POFA_INLINE bool in_quads() const {
    return header.value_type == kI8 && header.version > (header.block_rows == 4 ? 2 : 3);
  }
  POFA_INLINE bool in_steps() const { return header.version > 3; }
  // Number of the index, and of the value, of entry e of row j of a pair; relative to the unit's first.
  POFA_INLINE uint32_t place_in_pair(uint32_t e, uint32_t j) const {
    return in_quads() ? e / 4 * 8 + 4 * j + e % 4 : 2 * e + j;
  }
  POFA_INLINE uint32_t rows_per_unit() const { return header.block_rows == 1 ? 2 : 4; }
  // Number of a unit's row j, relative to the group's first row.
  POFA_INLINE uint32_t row(uint64_t unit, uint32_t j) const {
    return header.block_rows == 1 ? unit_rows[2 * unit + j] : 4u * unit_rows[unit] + j;
  }
  POFA_INLINE uint32_t rows_in_group(uint32_t group) const {
    uint32_t remaining = header.rows - group * header.group_rows;
    return remaining < header.group_rows ? remaining : header.group_rows;
  }
  POFA_INLINE uint32_t units_in_group(uint32_t group) const {
    return (rows_in_group(group) + rows_per_unit() - 1) / rows_per_unit();
  }
  POFA_INLINE uint32_t columns_in_block(uint32_t block) const {
    uint32_t remaining = header.columns - block * header.block_columns;
    return remaining < header.block_columns ? remaining : header.block_columns;
  }
  // All groups before the last have group_rows rows.
  POFA_INLINE uint64_t first_unit(uint32_t group) const {
    return uint64_t(group) * block_count() * ((header.group_rows + rows_per_unit() - 1) / rows_per_unit());
  }
};

size_t value_bytes(uint32_t value_type);

uint64_t checksum(const uint8_t* data, size_t size);

// Validates everything that the kernel relies on, so that no later read is out of bounds: O(size), one pass per check.
Error open_matrix(const void* blob, size_t size, Matrix* matrix);

// See pofa_describe.
void describe(const Matrix& matrix, uint64_t facts[6]);

// Unaligned read: OpenVINO chooses where in the .bin a packed matrix is stored.
template <typename T>
POFA_INLINE T read_at(const uint8_t* base, size_t index) {
  T value;
  __builtin_memcpy(&value, base + index * sizeof(T), sizeof(T));
  return value;
}

POFA_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
  uint32_t bits;
  if (rest >= 0x7c00) bits = 0x7f800000 | (rest & 0x3ff) << 13;
  else bits = rest << 13;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  if (rest < 0x7c00) value *= 0x1p112f;  // adjusts the exponent's bias; correct for subnormal halves too
  __builtin_memcpy(&bits, &value, 4);
  bits |= sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace pofa
