#include "openvino_embeddings.h"

#include "kernel.h"
#include "openvino_operation.h"

using namespace pofa;

EmbeddingSum::EmbeddingSum(const EmbeddingSum& other, const ov::OutputVector& inputs) : Op(inputs), m_epsilon(other.m_epsilon) {
  constructor_validate_and_infer_types();
}

std::shared_ptr<ov::Node> EmbeddingSum::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  return std::make_shared<EmbeddingSum>(*this, inputs);
}

bool EmbeddingSum::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("epsilon", m_epsilon);
  return true;
}

void EmbeddingSum::validate_and_infer_types() {
  const size_t inputs = get_input_size();
  NODE_VALIDATION_CHECK(this, inputs > kFixedInputs && (inputs - kFixedInputs) % kInputsPerTable == 0 && tables() <= kMaxTables,
                        "expected a mask, a norm, and codes, scales and indices of one to ", kMaxTables, " tables, got ",
                        inputs, " inputs");
  const float epsilon = to_float(m_epsilon);
  NODE_VALIDATION_CHECK(this, epsilon >= 0 && std::isfinite(epsilon), "epsilon: not a number of at least 0: ", m_epsilon);
  const auto mask_type = get_input_element_type(0);
  NODE_VALIDATION_CHECK(this, mask_type.compatible(ov::element::boolean) || mask_type.compatible(ov::element::u8),
                        "the mask must be boolean or u8, not ", mask_type);
  const ov::PartialShape mask = get_input_partial_shape(0), norm = get_input_partial_shape(1);
  NODE_VALIDATION_CHECK(this, mask.compatible({-1, -1}), "the mask has shape ", mask, ", expected [?,?]");
  NODE_VALIDATION_CHECK(this, get_input_element_type(1) == ov::element::f32 && norm.is_static() && norm.size() == 2 &&
                        norm[0] == 2 && norm[1].get_length() > 0, "the norm must be f32 [2,hidden], not ",
                        get_input_element_type(1), " ", norm);
  const ov::Dimension hidden = norm[1];
  for (size_t i = kFixedInputs; i < inputs; i += kInputsPerTable) {
    const ov::PartialShape codes = get_input_partial_shape(i), scales = get_input_partial_shape(i + 1);
    const ov::PartialShape indices = get_input_partial_shape(i + 2);
    NODE_VALIDATION_CHECK(this, get_input_element_type(i) == ov::element::i8 && codes.is_static() && codes.size() == 2 &&
                          codes[1] == hidden && codes[0].get_length() <= INT32_MAX,
                          "codes of a table must be i8 [rows,", hidden, "], not ", get_input_element_type(i), " ", codes);
    NODE_VALIDATION_CHECK(this, get_input_element_type(i + 1) == ov::element::f32 &&
                          scales == (ov::PartialShape{codes[0], 1}), "scales of a table must be f32 [", codes[0], ",1], not ",
                          get_input_element_type(i + 1), " ", scales);
    NODE_VALIDATION_CHECK(this, get_input_element_type(i + 2).compatible(ov::element::i32), "indices must be i32, not ",
                          get_input_element_type(i + 2));
    NODE_VALIDATION_CHECK(this, indices.compatible({-1, -1}), "indices have shape ", indices, ", expected [?,?]");
  }
  ov::PartialShape out{-1, -1, hidden};
  if (mask.rank().is_static()) out = {mask[0], mask[1], hidden};
  set_output_type(0, ov::element::f32, out);
}

bool EmbeddingSum::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  const ov::Shape mask = inputs[0].get_shape(), norm = inputs[1].get_shape();
  OPENVINO_ASSERT(mask.size() == 2, "EmbeddingSum: the mask has shape ", mask, ", expected [?,?]");
  const size_t batch = mask[0], length = mask[1], hidden = norm[1];
  std::vector<pofa_table> all(tables());
  for (size_t k = 0; k < all.size(); ++k) {
    const ov::Tensor& codes = inputs[kFixedInputs + kInputsPerTable * k];
    const ov::Tensor& scales = inputs[kFixedInputs + kInputsPerTable * k + 1];
    const ov::Tensor& indices = inputs[kFixedInputs + kInputsPerTable * k + 2];
    const ov::Shape found = indices.get_shape();
    // Dynamic shapes have not been checked yet.
    OPENVINO_ASSERT(found.size() == 2 && found[1] == length && (found[0] == batch || found[0] == 1), "EmbeddingSum: indices ",
                    "have shape ", found, ", the mask has ", mask);
    all[k] = {codes.data<const int8_t>(), scales.data<const float>(), indices.data<const int32_t>(), codes.get_shape()[0],
              found[0] == batch ? length : 0};
  }
  outputs[0].set_shape({batch, length, hidden});
  const float* const parameters = inputs[1].data<const float>();
  const int error = pofa_embed(all.data(), uint32_t(all.size()), uint32_t(hidden), parameters, parameters + hidden,
                               to_float(m_epsilon), static_cast<const uint8_t*>(inputs[0].data()), batch, length,
                               outputs[0].data<float>(), parallel_in_caller_arena, threads_of_caller_arena(), nullptr);
  OPENVINO_ASSERT(error == 0, "EmbeddingSum: ", pofa_error(error));
  return true;
}
