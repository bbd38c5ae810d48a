// Operation SparseEncoder: a stack of encoder layers.
//
// Inputs: hidden states f32 [batch, length, hidden]; mask, boolean or u8 [batch, length], true for valid tokens; LayerNorm
// parameters, a f32 constant [layers, 4, hidden] (scale and offset after the attention, then after the feed-forward); then six
// packed matrices per layer, u8 constants: query, key, value, attention output, feed-forward inner and outer.
// Output: hidden states, zero for tokens that are not valid.
#pragma once
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>
#include <tuple>

#include "encoder.h"

class SparseEncoder : public ov::op::Op {
 public:
  OPENVINO_OP("SparseEncoder", "pruneofa");

  SparseEncoder() = default;
  SparseEncoder(const SparseEncoder& other, const ov::OutputVector& inputs);

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool has_evaluate() const override { return true; }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

 private:
  using Encoder = std::shared_ptr<const pofa_encoder>;
  using Constants = std::vector<std::shared_ptr<ov::op::v0::Constant>>;
  // Everything that determines a stack: if it changes, a new one is opened.
  using Texts = std::vector<std::string>;
  using Key = std::tuple<std::vector<const void*>, int64_t, int64_t, std::string, std::string, Texts, Texts, Texts>;

  size_t layers() const { return (get_input_size() - kFixedInputs) / kMatrices; }
  void bind_constants();
  void read_ranges(const char* attribute, const std::vector<std::string>& texts, size_t first, size_t count,
                   float* ranges) const;  // NaN for "none"
  Encoder open_encoder(const Constants& constants) const;

  static constexpr size_t kFixedInputs = 3, kMatrices = 6;
  int64_t m_format_version = 0;
  int64_t m_hidden = 0;
  int64_t m_heads = 0;
  std::string m_scale = "1";                // factor of the attention scores
  std::string m_activation = "gelu_erf";    // gelu_erf, gelu_tanh, relu, none
  std::vector<std::string> m_epsilons;      // two per layer
  std::vector<std::string> m_ranges;        // low and high of each matrix's 8-bit input; "none" if it is not quantized
  std::vector<std::string> m_attention_ranges;  // low and high of each layer's queries, then of its keys; or "none"
  Encoder m_encoder;
  Key m_key;
  Constants m_constants;  // kept alive, so that the addresses that the stack reads are not reused for other constants
};
