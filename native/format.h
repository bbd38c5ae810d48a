// The packed form of one pruned matrix, as it lies in an IR's .bin: read in place, never repacked.
//
// Little-endian. A header, then six sections at the offsets that the header names. The matrix is cut into groups of
// rows and, in each group, into blocks of columns; entries lie in the order in which the kernel reads them:
//
//   for each group of rows
//     for each block of columns
//       for each unit (1x1: two rows of about the same number of entries; 4x1: four neighbouring rows)
//         count     u16           entries of a row in this block (the shorter row of a pair is padded with zeros)
//         rows      u8 u8         1x1: the two rows, counted from the group's first
//                   u8            4x1: the four rows, counted in fours
//         indices   u8 [...]      columns, counted from the block's first; 1x1: of the two rows in turn
//         values    [...]         1x1: of the two rows in turn; 4x1: of the four rows, entry by entry
//
// Units lie shorter ones first: where one ends is then seldom a surprise to the processor. An odd row is paired with a row behind the group's last, which the kernel computes and drops.
#pragma once
#include <cstddef>
#include <cstdint>

// Files built for AVX-512 include this too. What they compile must never be the copy that the linker keeps for all, so there
// is no copy: every function defined here and in kernel.h is inlined.
#define POFA_INLINE inline __attribute__((always_inline))

namespace pofa {

constexpr uint32_t kVersion = 2;
constexpr uint32_t kMaxBlock = 256;   // columns: an index is one byte
constexpr uint32_t kMaxGroup = 254;   // rows: a row and the spare row behind the last are one byte
constexpr uint32_t kMaxSide = 1u << 22;
constexpr size_t kSlack = 64;         // readable zeros behind indices and values, for whole-vector loads

enum ValueType : uint32_t { kF32 = 0, kF16 = 1, kI8 = 2 };

enum Error : int {
  kOk = 0,
  kTooShort = -1,
  kNotABlob = -2,
  kNewer = -3,
  kBadHeader = -4,
  kBadChecksum = -5,
  kBadEntries = -6,
  kBadArgument = -7,
  kNoMemory = -8,
  kOlder = -9,
};

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint32_t rows, columns;
  uint32_t block_rows;     // 1 or 4
  uint32_t value_type;     // ValueType
  uint32_t block_columns;  // of a block, the last may be shorter
  uint32_t group_rows;     // of a group, the last may be shorter
  uint64_t total_bytes;
  uint64_t nonzeros;       // values that are not zero, without padding
  uint64_t entries;        // indices stored, with padding
  uint64_t groups_at;      // u64 [groups + 1]: first entry of each group
  uint64_t counts_at;      // u16 [units]
  uint64_t rows_at;        // u8 [units], 1x1: [2 * units]
  uint64_t indices_at;     // u8 [entries]
  uint64_t values_at;      // value_type [entries * block_rows]
  uint64_t scales_at;      // f32 [rows]
  uint64_t biases_at;      // f32 [rows]
  uint64_t checksum;       // of everything but this field
};
static_assert(sizeof(Header) == 128 && offsetof(Header, checksum) == 120, "the header is the file format");

// A checked blob: pointers into it, nothing owned.
struct Matrix {
  Header header;
  const uint8_t *groups, *counts, *unit_rows, *indices, *values, *scales, *biases;
  POFA_INLINE uint32_t rows() const { return header.rows; }
  POFA_INLINE uint32_t columns() const { return header.columns; }
  POFA_INLINE uint32_t groups_count() const { return (header.rows + header.group_rows - 1) / header.group_rows; }
  POFA_INLINE uint32_t blocks_count() const { return (header.columns + header.block_columns - 1) / header.block_columns; }
  POFA_INLINE uint32_t rows_of_unit() const { return header.block_rows == 1 ? 2 : 4; }
  // Row j of a unit, counted from the group's first.
  POFA_INLINE uint32_t row(uint64_t unit, uint32_t j) const {
    return header.block_rows == 1 ? unit_rows[2 * unit + j] : 4u * unit_rows[unit] + j;
  }
  POFA_INLINE uint32_t rows_in_group(uint32_t group) const {
    uint32_t left = header.rows - group * header.group_rows;
    return left < header.group_rows ? left : header.group_rows;
  }
  POFA_INLINE uint32_t units_in_group(uint32_t group) const {
    return (rows_in_group(group) + rows_of_unit() - 1) / rows_of_unit();
  }
  POFA_INLINE uint32_t columns_in_block(uint32_t block) const {
    uint32_t left = header.columns - block * header.block_columns;
    return left < header.block_columns ? left : header.block_columns;
  }
  // Every group before the last is full.
  POFA_INLINE uint64_t first_unit(uint32_t group) const {
    return uint64_t(group) * blocks_count() * ((header.group_rows + rows_of_unit() - 1) / rows_of_unit());
  }
};

size_t value_bytes(uint32_t value_type);

uint64_t checksum(const uint8_t* data, size_t size);

// Checks everything that the kernel relies on, so that no later read can leave the blob: O(size), reads it once.
Error open_matrix(const void* blob, size_t size, Matrix* matrix);

// Unaligned reads: where a blob lies in the .bin is not ours to say.
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
  if (rest < 0x7c00) value *= 0x1p112f;  // moves the exponent's bias; right for subnormal halves too
  __builtin_memcpy(&bits, &value, 4);
  bits |= sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

}  // namespace pofa
