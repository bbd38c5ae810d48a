// C interface of the kernels: packed matrices, and y = activation(x W^T + b) with them. Independent of OpenVINO.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define POFA_API __attribute__((visibility("default")))

// Runs task(context, i) for i in 0 .. n-1, in any order and on any threads; returns when all tasks are done. The calling
// thread may run tasks of this call, but none of other calls until then. Propagates a task's exception (std::bad_alloc).
typedef void (*pofa_task)(void* context, size_t i);
typedef void (*pofa_parallel_for)(size_t n, pofa_task task, void* context);

typedef struct pofa_layer pofa_layer;

// Message for an error code.
POFA_API const char* pofa_error(int code);

// Instruction set of layers opened with isa == NULL: "vnni" (AVX-512 with VNNI), "avx512", "avxvnni" (AVX2 with VNNI), "avx2"
// or "scalar".
POFA_API const char* pofa_isa(void);

// Version of the packed format that this library writes, and the newest that it reads.
POFA_API uint32_t pofa_format_version(void);

// Packs values [rows][columns] (value_type 0: float, 1: half, 2: int8) with scales [rows] and biases [rows]; both
// may be NULL. block_rows is 1 or 4; block_columns and group_rows are 0 for the defaults.
// Writes the packed matrix to `blob` if `capacity` suffices. Returns its size in either case, or a negative error code.
POFA_API int64_t pofa_pack(const void* values, uint32_t value_type, const float* scales, const float* biases, uint32_t rows,
                           uint32_t columns, uint32_t block_rows, uint32_t block_columns, uint32_t group_rows, void* blob,
                           size_t capacity);

// facts: rows, columns, block_rows, value_type, nonzeros, entries.
POFA_API int pofa_describe(const void* blob, size_t size, uint64_t facts[6]);

// Inverse of pofa_pack.
POFA_API int pofa_unpack(const void* blob, size_t size, void* values, float* scales, float* biases);

// Opens a layer over `count` packed matrices and validates them completely. They are not copied: they must neither move nor
// change until the layer is closed.
// chain == 0: each matrix produces an output from the same x, activation last (Q, K and V).
// chain != 0: the first matrix's output, after the activation, is the second's input (a feed-forward layer); count == 2.
// activation 0: none, 1: GELU with erf, 2: GELU with tanh. isa: a name that pofa_isa may return, or NULL for the fastest.
// ranges: NULL, or low and high for each matrix: its input activations are first quantized to 8 bits, to 256 equidistant levels
// from low to high. INT8 matrices are then multiplied as codes, exactly, with AVX2 and with VNNI, and as floats otherwise.
POFA_API int pofa_open(const void* const* blobs, const size_t* sizes, uint32_t count, int chain, int activation,
                       const float* ranges, const char* isa, pofa_layer** layer);
POFA_API void pofa_close(pofa_layer* layer);

// Same as pofa_describe, for matrix i of a layer, without validating it again.
POFA_API int pofa_layer_facts(const pofa_layer* layer, uint32_t i, uint64_t facts[6]);

// x [tokens][columns] -> y[i] [tokens][rows of matrix i]; for a chain, y[0] [tokens][rows of the second matrix].
// threads: number of threads that the parallel-for may use. Calls on the same layer may run concurrently.
// A token with a NaN or an infinity gets the result of a dense MatMul: infinity times a zero weight is NaN.
POFA_API int pofa_run(const pofa_layer* layer, const float* x, size_t tokens, float* const* y, pofa_parallel_for parallel,
                      uint32_t threads);

#ifdef __cplusplus
}
#endif
