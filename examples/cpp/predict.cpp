// Runs an IR on the sparse engine with the token ids of one text, and prints its logits, one a line.
//   predict libpruneofa_openvino.so sparse-engine-int8/openvino_model.xml 101 1037 4010 102
#include <algorithm>
#include <cstdint>
#include <exception>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

namespace {

void run(const std::string& extension, const std::string& ir, const std::vector<int64_t>& ids) {
    ov::Core core;
    core.add_extension(extension);  // before the IR is read: it defines the operations SparseEncoder and SparseLinear
    // FP32, in which the export and the benchmark measured; CPUs with AMX or AVX512_BF16 would take bf16.
    ov::CompiledModel model = core.compile_model(ir, "CPU", ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = model.create_infer_request();
    for (const auto& input : model.inputs()) {
        ov::Tensor tensor(ov::element::i64, {1, ids.size()});
        int64_t* values = tensor.data<int64_t>();
        const std::string name = input.get_any_name();
        if (name == "input_ids")
            std::copy(ids.begin(), ids.end(), values);
        else  // token_type_ids are 0: there is one text
            std::fill_n(values, ids.size(), name == "attention_mask" ? 1 : 0);
        request.set_tensor(input, tensor);
    }
    request.infer();
    const ov::Tensor logits = request.get_output_tensor(0);
    std::cout << std::setprecision(std::numeric_limits<float>::max_digits10);
    for (size_t i = 0; i < logits.get_size(); ++i)
        std::cout << logits.data<float>()[i] << '\n';
}

}  // namespace

int main(int argc, char* argv[]) {
    if (argc < 4) {
        std::cerr << "usage: predict EXTENSION IR.xml TOKEN_ID...\n";
        return 2;
    }
    try {
        std::vector<int64_t> ids;
        std::transform(argv + 3, argv + argc, std::back_inserter(ids), [](const char* text) { return std::stoll(text); });
        run(argv[1], argv[2], ids);
    } catch (const std::exception& error) {
        std::cerr << "predict: " << error.what() << '\n';
        return 1;
    }
}
