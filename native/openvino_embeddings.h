// Operation EmbeddingSum: LayerNorm of a sum of embeddings, the input of an encoder.
//
// Inputs: mask, boolean or u8 [batch, length], true for valid tokens; LayerNorm parameters, a f32 constant [2, hidden] (scale,
// offset); then for each table: codes, an i8 constant [rows, hidden]; scales, a f32 constant [rows, 1]; indices, i32
// [batch, length] or [1, length].
// Output: f32 [batch, length, hidden], zero for tokens that are not valid.
#pragma once
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>

#include "embeddings.h"

class EmbeddingSum : public ov::op::Op {
 public:
  OPENVINO_OP("EmbeddingSum", "pruneofa");

  EmbeddingSum() = default;
  EmbeddingSum(const EmbeddingSum& other, const ov::OutputVector& inputs);

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool has_evaluate() const override { return true; }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

 private:
  size_t tables() const { return (get_input_size() - kFixedInputs) / kInputsPerTable; }

  static constexpr size_t kFixedInputs = 2, kInputsPerTable = 3;
  std::string m_epsilon = "1e-12";
};
