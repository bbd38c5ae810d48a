// C interface of the sum of embeddings that precedes an encoder, with its LayerNorm. Independent of OpenVINO.
#pragma once
#include "sparse_linear.h"

#ifdef __cplusplus
extern "C" {
#endif

// A table of 8-bit codes, of which one row is added to each token: code * scale of the row. Indices below zero count from the
// end, as in OpenVINO's Gather; others outside the table add nothing.
typedef struct {
  const int8_t* codes;     // [rows][hidden]
  const float* scales;     // [rows]
  const int32_t* indices;  // [batch][length], or [length] for all sequences if index_stride is 0
  uint64_t rows;
  uint64_t index_stride;   // between sequences: length or 0
} pofa_table;

// y [batch][length][hidden]: LayerNorm of the sum over the tables, in their order. mask [batch][length]: not zero for valid
// tokens; NULL: all are. y is zero for the others, which cost nothing. isa: as in pofa_open.
POFA_API int pofa_embed(const pofa_table* tables, uint32_t count, uint32_t hidden, const float* norm_scales,
                        const float* norm_offsets, float epsilon, const uint8_t* mask, size_t batch, size_t length, float* y,
                        pofa_parallel_for parallel, uint32_t threads, const char* isa);

#ifdef __cplusplus
}
#endif
