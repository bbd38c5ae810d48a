// OpenVINO extension with the operations SparseLinear, SparseEncoder and EmbeddingSum, loaded by
// core.add_extension("libpruneofa_openvino.so").
//
// Inputs of SparseLinear: activations f32 [..., columns], then packed matrices: u8 [bytes] constants, read in place from the
// memory-mapped .bin.
#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/op.hpp>
#include <tuple>

#include "openvino_embeddings.h"
#include "openvino_encoder.h"
#include "openvino_operation.h"
#include "sparse_linear.h"

using namespace pofa;

namespace {

using Layer = std::shared_ptr<const pofa_layer>;

}  // namespace

class SparseLinear : public ov::op::Op {
 public:
  OPENVINO_OP("SparseLinear", "pruneofa");

  SparseLinear() = default;

  void validate_and_infer_types() override {
    NODE_VALIDATION_CHECK(this, get_input_size() == m_rows.size() + 1 && !m_rows.empty(), "expected one packed matrix for each"
                          " of the ", m_rows.size(), " entries of rows, got ", get_input_size() - 1);
    check_format_version(this, m_format_version);
    NODE_VALIDATION_CHECK(this, get_input_element_type(0).compatible(ov::element::f32), "activations must be f32, not ",
                          get_input_element_type(0));
    ov::PartialShape shape = get_input_partial_shape(0);
    NODE_VALIDATION_CHECK(this, shape.rank().is_dynamic() || shape.rank().get_length() > 0, "activations must not be a scalar");
    if (shape.rank().is_static()) {
      ov::Dimension& last = shape[shape.rank().get_length() - 1];
      NODE_VALIDATION_CHECK(this, last.compatible(m_columns), "activations have ", last, " columns, the weights have ",
                            m_columns);
    }
    NODE_VALIDATION_CHECK(this, m_ranges.empty() || m_ranges.size() == 2 * m_rows.size(), "input_ranges: expected low and high"
                          " for each of the ", m_rows.size(), " matrices, got ", m_ranges.size(), " values");
    for (size_t i = 0; i < m_rows.size(); ++i)
      NODE_VALIDATION_CHECK(this, get_input_element_type(i + 1).compatible(ov::element::u8),
                            "packed weights: element type must be u8");
    bind_constants();
    const size_t outputs = m_chain ? 1 : m_rows.size();
    for (size_t i = 0; i < outputs; ++i) {
      ov::PartialShape out = shape;
      if (out.rank().is_static()) out[out.rank().get_length() - 1] = m_chain ? m_rows.back() : m_rows[i];
      set_output_type(i, ov::element::f32, out);
    }
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    return std::make_shared<SparseLinear>(*this, inputs);
  }

  SparseLinear(const SparseLinear& other, const ov::OutputVector& inputs)
      : Op(inputs), m_format_version(other.m_format_version), m_rows(other.m_rows), m_columns(other.m_columns),
        m_pattern(other.m_pattern), m_activation(other.m_activation), m_chain(other.m_chain), m_ranges(other.m_ranges),
        m_layer(other.m_layer), m_layer_key(other.m_layer_key), m_constants(other.m_constants) {
    constructor_validate_and_infer_types();
  }

  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    visitor.on_attribute("format_version", m_format_version);
    visitor.on_attribute("rows", m_rows);
    visitor.on_attribute("columns", m_columns);
    visitor.on_attribute("pattern", m_pattern);
    visitor.on_attribute("activation", m_activation);
    visitor.on_attribute("chain", m_chain);
    visitor.on_attribute("input_ranges", m_ranges);
    return true;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    OPENVINO_ASSERT(m_layer, "SparseLinear: packed weights must be constants of the model");
    ov::Shape shape = inputs[0].get_shape();
    // If the shape was dynamic when the model was read, it has not been checked yet.
    OPENVINO_ASSERT(!shape.empty() && shape.back() == size_t(m_columns), "SparseLinear: activations have shape ", shape,
                    ", the weights have ", m_columns, " columns");
    const size_t tokens = inputs[0].get_size() / shape.back();
    std::vector<float*> y;
    for (size_t i = 0; i < outputs.size(); ++i) {
      shape.back() = size_t(m_chain ? m_rows.back() : m_rows[i]);
      outputs[i].set_shape(shape);
      y.push_back(outputs[i].data<float>());
    }
    const int error = pofa_run(m_layer.get(), inputs[0].data<const float>(), tokens, y.data(), parallel_in_caller_arena,
                               threads_of_caller_arena());
    OPENVINO_ASSERT(error == 0, "SparseLinear: ", pofa_error(error));
    return true;
  }

 private:
  using Constants = std::vector<std::shared_ptr<ov::op::v0::Constant>>;
  // Everything that determines a layer: if it changes, a new layer is opened.
  using LayerKey = std::tuple<std::vector<const void*>, bool, std::string, std::vector<std::string>>;

  // Opens the layer on the constants' memory, without a copy. Clones of this node with the same constants share the layer, so
  // that the memory is validated only once.
  void bind_constants() {
    Constants constants;
    std::vector<const void*> blobs;
    std::vector<size_t> sizes;
    for (size_t i = 0; i < m_rows.size(); ++i) {
      const auto constant = ov::as_type_ptr<ov::op::v0::Constant>(get_input_node_shared_ptr(i + 1));
      if (!constant) return set_layer(nullptr, {}, {});
      constants.push_back(constant);
      blobs.push_back(constant->get_data_ptr());
      sizes.push_back(constant->get_byte_size());
    }
    const LayerKey key{blobs, m_chain, m_activation, m_ranges};
    const Layer layer = m_layer && key == m_layer_key ? m_layer : open_layer(blobs, sizes);
    set_layer(nullptr, {}, {});
    for (size_t i = 0; i < m_rows.size(); ++i) {
      uint64_t facts[6];
      pofa_layer_facts(layer.get(), uint32_t(i), facts);
      const int64_t columns = i == 1 && m_chain ? m_rows[0] : m_columns;
      NODE_VALIDATION_CHECK(this, int64_t(facts[0]) == m_rows[i] && int64_t(facts[1]) == columns, "packed weights: shape is ",
                            facts[0], " x ", facts[1], ", the attributes specify ", m_rows[i], " x ", columns);
      NODE_VALIDATION_CHECK(this, m_pattern == (facts[2] == 4 ? "4x1" : "1x1"), "packed weights: pattern is not ", m_pattern);
    }
    set_layer(layer, key, constants);
  }

  void set_layer(const Layer& layer, const LayerKey& key, const Constants& constants) {
    m_layer = layer;
    m_layer_key = key;
    m_constants = constants;
  }

  Layer open_layer(const std::vector<const void*>& blobs, const std::vector<size_t>& sizes) const {
    const int activation = activation_number(m_activation);
    NODE_VALIDATION_CHECK(this, activation >= 0 && activation <= 2, "unknown activation ", m_activation);
    std::vector<float> ranges;
    for (const std::string& text : m_ranges) ranges.push_back(to_float(text));
    pofa_layer* layer = nullptr;
    const int error = pofa_open(blobs.data(), sizes.data(), uint32_t(blobs.size()), m_chain, activation,
                                ranges.empty() ? nullptr : ranges.data(), nullptr, &layer);
    NODE_VALIDATION_CHECK(this, error == 0, pofa_error(error));
    return Layer(layer, [](const pofa_layer* handle) { pofa_close(const_cast<pofa_layer*>(handle)); });
  }

  int64_t m_format_version = 0;
  std::vector<int64_t> m_rows;  // per matrix
  int64_t m_columns = 0;        // of the first matrix
  std::string m_pattern = "1x1";
  std::string m_activation = "none";  // none, gelu_erf, gelu_tanh
  bool m_chain = false;               // the first matrix's output is the second's input
  // Empty, or low and high for each matrix, whose input activations are quantized to 8 bits.
  std::vector<std::string> m_ranges;
  Layer m_layer;
  LayerKey m_layer_key;
  Constants m_constants;  // kept alive, so that the addresses that the layer reads are not reused for other constants
};

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({
    std::make_shared<ov::OpExtension<SparseLinear>>(),
    std::make_shared<ov::OpExtension<SparseEncoder>>(),
    std::make_shared<ov::OpExtension<EmbeddingSum>>(),
}));
