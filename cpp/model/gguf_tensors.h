// What a model becomes in llama.cpp's terms: its tensors by the names of gguf_names.cpp, and its sizes.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "core/checkpoint.h"
#include "model/config.h"

namespace rwkv {

// One tensor of the new file: views of the model, one after another.
struct GgufTensor {
  std::string name;
  std::vector<TensorInfo> parts;
  std::vector<int64_t> shape;  // row-major
  bool large = false;          // a matrix whose type is the caller's choice; what else there is stays float32
  bool turned = false;         // the last two dimensions of its one part are swapped
};

struct GgufModel {
  std::string architecture;  // "rwkv6" or "rwkv7"
  std::vector<GgufTensor> tensors;
  std::vector<std::pair<std::string, int64_t>> sizes;  // by key, without the architecture
};

// `file` has the official names and has passed Model::check. Throws ModelFormatError for a version that llama.cpp has
// no architecture for.
GgufModel gguf_model(const Checkpoint& file, const Config& config);

}  // namespace rwkv
