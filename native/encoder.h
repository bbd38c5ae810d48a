// C interface of a stack of encoder layers (post-LN: BERT, RoBERTa, ELECTRA, DistilBERT) with pruned matrices. Independent of
// OpenVINO.
#pragma once
#include "sparse_linear.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pofa_encoder pofa_encoder;

// One layer. Matrices: query, key, value, attention output, feed-forward inner and outer. Norms: after the attention, after the
// feed-forward.
typedef struct {
  const void* blobs[6];         // packed matrices: not copied, they must neither move nor change until the stack is closed
  size_t sizes[6];
  float ranges[6][2];           // low and high of each matrix's 8-bit input, see pofa_open; NaN: the input is not quantized
  float attention_ranges[2][2];  // the same of the attention's queries and keys; NaN: they are not quantized
  const float* norm_scales[2];  // [hidden], copied
  const float* norm_offsets[2];
  float epsilons[2];
} pofa_encoder_layer;

// Opens a stack of layers and validates it completely. hidden: size of the hidden states, and of the norms' arrays. heads:
// attention heads. scale: factor of the attention scores.
// activation: as in pofa_open, or 3: ReLU. isa: as in pofa_open.
POFA_API int pofa_encoder_open(const pofa_encoder_layer* layers, uint32_t count, uint32_t hidden, uint32_t heads, float scale,
                               int activation, const char* isa, pofa_encoder** encoder);
POFA_API void pofa_encoder_close(pofa_encoder* encoder);

// x [batch][length][hidden] -> y, same shape. mask [batch][length]: not zero for valid tokens; NULL: all are. Other tokens are
// neither read nor attended to and cost nothing; y is zero there. A NaN or an infinity reaches the same valid tokens as in a
// dense encoder. Calls on the same stack may run concurrently.
POFA_API int pofa_encoder_run(const pofa_encoder* encoder, const float* x, const uint8_t* mask, size_t batch, size_t length,
                              float* y, pofa_parallel_for parallel, uint32_t threads);

#ifdef __cplusplus
}
#endif
