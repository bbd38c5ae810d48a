// The C interface: packed matrices, and y = activation(x W^T + b) with them. Nothing here knows OpenVINO.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define POFA_API __attribute__((visibility("default")))

// Runs task(context, i) for i in 0 .. n-1, in any order, on any threads; returns when all are done. The calling thread may
// help, but must not run tasks of other calls meanwhile. What a task throws
// (std::bad_alloc) comes out of it.
typedef void (*pofa_task)(void* context, size_t i);
typedef void (*pofa_parallel_for)(size_t n, pofa_task task, void* context);

typedef struct pofa_layer pofa_layer;

// What an error code says, in words for people.
POFA_API const char* pofa_error(int code);

// "vnni" (AVX-512 with it), "avx512", "avxvnni" (AVX2 with it), "avx2" or "scalar": what layers opened with isa == NULL use.
POFA_API const char* pofa_isa(void);

// The newest version of the packed form that this library reads, and the one it writes.
POFA_API uint32_t pofa_format_version(void);

// Packs values [rows][columns] (value_type 0: float, 1: half, 2: int8) with scales [rows] and biases [rows], each or
// NULL. block_rows is 1 or 4; block_columns and group_rows are 0 for the defaults.
// Writes the blob if `capacity` suffices, and returns its size in any case; negative: an error code.
POFA_API int64_t pofa_pack(const void* values, uint32_t value_type, const float* scales, const float* biases, uint32_t rows,
                           uint32_t columns, uint32_t block_rows, uint32_t block_columns, uint32_t group_rows, void* blob,
                           size_t capacity);

// facts: rows, columns, block_rows, value_type, nonzeros, entries.
POFA_API int pofa_describe(const void* blob, size_t size, uint64_t facts[6]);

// The inverse of pofa_pack.
POFA_API int pofa_unpack(const void* blob, size_t size, void* values, float* scales, float* biases);

// One operation over `count` blobs that stay where they are, unchanged, as long as the layer lives. Checks them whole.
// chain == 0: each blob makes an output of its own from the same x, activation last (Q, K and V).
// chain != 0: the first makes the second's input, with the activation between them (a feed-forward layer); count == 2.
// activation 0: none, 1: GELU by erf, 2: GELU by tanh. isa: a name of pofa_isa, or NULL for the best.
// ranges: NULL, or low and high for each blob: the activations that meet it are rounded to 8 bits before, to 256 equal steps
// from low to high. 4x1 blobs of int8 are then multiplied as codes, exactly, by AVX2 and by what has VNNI; by others as floats.
POFA_API int pofa_open(const void* const* blobs, const size_t* sizes, uint32_t count, int chain, int activation,
                       const float* ranges, const char* isa, pofa_layer** layer);
POFA_API void pofa_close(pofa_layer* layer);

// As pofa_describe, of matrix i of a layer, which is not checked again.
POFA_API int pofa_layer_facts(const pofa_layer* layer, uint32_t i, uint64_t facts[6]);

// x [tokens][columns] -> y[i] [tokens][rows of blob i], or y[0] of the second blob's rows if chained.
// threads: how many the parallel-for may use. Any number of calls may run at once on one layer.
// A token with a NaN or an infinity gets what the dense product gives it, infinity times a zero weight included.
POFA_API int pofa_run(const pofa_layer* layer, const float* x, size_t tokens, float* const* y, pofa_parallel_for parallel,
                      uint32_t threads);

#ifdef __cplusplus
}
#endif
