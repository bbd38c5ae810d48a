// Conversion of dense matrices to the packed format and back.
#pragma once
#include <vector>

#include "format.h"

namespace pofa {

struct Dense {
  const void* values;   // row-major [rows][columns] of value_type: weights, or codes of an INT8 matrix
  uint32_t value_type;  // ValueType
  const float* scales;  // [rows]; null: 1
  const float* biases;  // [rows]; null: 0
  uint32_t rows, columns;
};

// block_columns, group_rows: 0 selects the defaults.
Error pack(const Dense& dense, uint32_t block_rows, uint32_t block_columns, uint32_t group_rows, std::vector<uint8_t>* blob);

// values: [rows][columns] of the packed matrix's value type; scales and biases: [rows].
void unpack(const Matrix& matrix, void* values, float* scales, float* biases);

}  // namespace pofa
