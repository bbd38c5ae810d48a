#include "openvino_encoder.h"

#include "openvino_operation.h"

using namespace pofa;

SparseEncoder::SparseEncoder(const SparseEncoder& other, const ov::OutputVector& inputs)
    : Op(inputs), m_format_version(other.m_format_version), m_hidden(other.m_hidden), m_heads(other.m_heads),
      m_scale(other.m_scale), m_activation(other.m_activation), m_epsilons(other.m_epsilons), m_ranges(other.m_ranges),
      m_attention_ranges(other.m_attention_ranges),
      m_encoder(other.m_encoder), m_key(other.m_key), m_constants(other.m_constants) {
  constructor_validate_and_infer_types();
}

std::shared_ptr<ov::Node> SparseEncoder::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  return std::make_shared<SparseEncoder>(*this, inputs);
}

bool SparseEncoder::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("format_version", m_format_version);
  visitor.on_attribute("hidden", m_hidden);
  visitor.on_attribute("heads", m_heads);
  visitor.on_attribute("scale", m_scale);
  visitor.on_attribute("activation", m_activation);
  visitor.on_attribute("epsilons", m_epsilons);
  visitor.on_attribute("input_ranges", m_ranges);
  visitor.on_attribute("attention_ranges", m_attention_ranges);
  return true;
}

void SparseEncoder::validate_and_infer_types() {
  const size_t inputs = get_input_size();
  NODE_VALIDATION_CHECK(this, inputs > kFixedInputs && (inputs - kFixedInputs) % kMatrices == 0,
                        "expected hidden states, a mask, norms and six packed matrices per layer, got ", inputs, " inputs");
  check_format_version(this, m_format_version);
  NODE_VALIDATION_CHECK(this, m_hidden >= 1 && m_heads >= 1 && m_hidden % m_heads == 0, "hidden ", m_hidden,
                        " is not a multiple of heads ", m_heads);
  NODE_VALIDATION_CHECK(this, m_epsilons.size() == 2 * layers(), "epsilons: expected two per layer, got ", m_epsilons.size());
  NODE_VALIDATION_CHECK(this, m_ranges.size() == 2 * kMatrices * layers(), "input_ranges: expected low and high for each of ",
                        "the ", kMatrices * layers(), " matrices, got ", m_ranges.size(), " values");
  NODE_VALIDATION_CHECK(this, m_attention_ranges.size() == 4 * layers(), "attention_ranges: expected low and high of queries ",
                        "and keys for each of the ", layers(), " layers, got ", m_attention_ranges.size(), " values");
  const auto mask_type = get_input_element_type(1);
  NODE_VALIDATION_CHECK(this, get_input_element_type(0).compatible(ov::element::f32), "hidden states must be f32, not ",
                        get_input_element_type(0));
  NODE_VALIDATION_CHECK(this, mask_type.compatible(ov::element::boolean) || mask_type.compatible(ov::element::u8),
                        "the mask must be boolean or u8, not ", mask_type);
  NODE_VALIDATION_CHECK(this, get_input_element_type(2).compatible(ov::element::f32), "norms must be f32");
  for (size_t i = kFixedInputs; i < inputs; ++i)
    NODE_VALIDATION_CHECK(this, get_input_element_type(i).compatible(ov::element::u8),
                          "packed weights: element type must be u8");
  const ov::PartialShape x = get_input_partial_shape(0), mask = get_input_partial_shape(1);
  NODE_VALIDATION_CHECK(this, x.compatible({-1, -1, m_hidden}), "hidden states have shape ", x, ", expected [?,?,", m_hidden,
                        "]");
  NODE_VALIDATION_CHECK(this, mask.compatible({-1, -1}), "the mask has shape ", mask, ", expected [?,?]");
  bind_constants();
  ov::PartialShape out = x.rank().is_static() ? x : ov::PartialShape{-1, -1, m_hidden};
  out[2] = m_hidden;
  set_output_type(0, ov::element::f32, out);
}

bool SparseEncoder::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  OPENVINO_ASSERT(m_encoder, "SparseEncoder: norms and packed weights must be constants of the model");
  const ov::Shape shape = inputs[0].get_shape(), mask = inputs[1].get_shape();
  // Dynamic shapes have not been checked yet.
  OPENVINO_ASSERT(shape.size() == 3 && shape[2] == size_t(m_hidden), "SparseEncoder: hidden states have shape ", shape,
                  ", expected [?,?,", m_hidden, "]");
  OPENVINO_ASSERT(mask.size() == 2 && mask[0] == shape[0] && mask[1] == shape[1], "SparseEncoder: the mask has shape ", mask,
                  ", hidden states have ", shape);
  outputs[0].set_shape(shape);
  const uint8_t* valid = static_cast<const uint8_t*>(inputs[1].data());
  const int error = pofa_encoder_run(m_encoder.get(), inputs[0].data<const float>(), valid, shape[0], shape[1],
                                     outputs[0].data<float>(), parallel_in_caller_arena, threads_of_caller_arena());
  OPENVINO_ASSERT(error == 0, "SparseEncoder: ", pofa_error(error));
  return true;
}

// Opens the stack on the constants' memory. Clones of this node with the same constants share it, so that the memory is
// validated only once.
void SparseEncoder::bind_constants() {
  Constants constants;
  std::vector<const void*> addresses;
  for (size_t i = 2; i < get_input_size(); ++i) {
    const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(get_input_node_shared_ptr(i));
    if (!constant) {
      m_encoder.reset();
      return;
    }
    constants.push_back(constant);
    addresses.push_back(constant->get_data_ptr());
  }
  const Key key{addresses, m_hidden, m_heads, m_scale, m_activation, m_epsilons, m_ranges, m_attention_ranges};
  const Encoder encoder = m_encoder && key == m_key ? m_encoder : open_encoder(constants);
  m_encoder = encoder;
  m_key = key;
  m_constants = constants;
}

void SparseEncoder::read_ranges(const char* attribute, const std::vector<std::string>& texts, size_t first, size_t count,
                                float* ranges) const {
  size_t none = 0;
  for (size_t i = 0; i < count; ++i) {
    const std::string& text = texts[first + i];
    none += text == "none";
    ranges[i] = to_float(text);
    NODE_VALIDATION_CHECK(this, text == "none" || std::isfinite(ranges[i]), attribute, ": not a number: ", text);
  }
  NODE_VALIDATION_CHECK(this, none == 0 || none == count, attribute, ": a range of which only a part is none");
}

SparseEncoder::Encoder SparseEncoder::open_encoder(const Constants& constants) const {
  const ov::Shape norms = constants[0]->get_shape(), expected{layers(), 4, size_t(m_hidden)};
  NODE_VALIDATION_CHECK(this, norms == expected, "norms have shape ", norms, ", expected ", expected);
  const int activation = activation_number(m_activation);
  NODE_VALIDATION_CHECK(this, activation >= 0, "unknown activation ", m_activation);
  const float* parameters = constants[0]->get_data_ptr<float>();
  std::vector<pofa_encoder_layer> specs(layers());
  for (size_t l = 0; l < layers(); ++l) {
    for (size_t i = 0; i < kMatrices; ++i) {
      const auto& blob = constants[1 + l * kMatrices + i];
      specs[l].blobs[i] = blob->get_data_ptr();
      specs[l].sizes[i] = blob->get_byte_size();
      read_ranges("input_ranges", m_ranges, 2 * (l * kMatrices + i), 2, specs[l].ranges[i]);
    }
    read_ranges("attention_ranges", m_attention_ranges, 4 * l, 4, specs[l].attention_ranges[0]);
    for (size_t i = 0; i < 2; ++i) {
      specs[l].norm_scales[i] = parameters + (l * 4 + 2 * i) * m_hidden;
      specs[l].norm_offsets[i] = parameters + (l * 4 + 2 * i + 1) * m_hidden;
      specs[l].epsilons[i] = to_float(m_epsilons[2 * l + i]);
    }
  }
  pofa_encoder* encoder = nullptr;
  const int error = pofa_encoder_open(specs.data(), uint32_t(specs.size()), uint32_t(m_hidden), uint32_t(m_heads),
                                      to_float(m_scale), activation, nullptr, &encoder);
  NODE_VALIDATION_CHECK(this, error == 0, pofa_error(error));
  return Encoder(encoder, [](const pofa_encoder* handle) { pofa_encoder_close(const_cast<pofa_encoder*>(handle)); });
}
