// Any bytes as an adapter of a small model, as the configuration of one, or as a tuned state: refused with rwkv::Error,
// or merged, and then the merged weights can be read whole or in pieces alike. What is applied beside the weights is
// what could be merged too.
#include <optional>

#include "fuzz_tensors.h"
#include "model/adapter_config.h"
#include "model/adapter_weights.h"
#include "model/adapters.h"
#include "model/config.h"
#include "model/model.h"
#include "model/names.h"
#include "model/tuned_state.h"
#include "tiny_model.h"

namespace {

const rwkv::Checkpoint& model() {
  static const tiny::TempFile place("fuzz-model.safetensors");
  static const auto opened = rwkv::with_official_names(rwkv::Checkpoint::open(
      tiny::Model({.layers = 1, .heads = 2, .head_size = 8, .ffn = 32, .vocab = 12, .rank = 3}).write(place)));
  return opened;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const rwkv::Config config = rwkv::read_config(model());
  static const auto loaded = rwkv::Model::load(model(), "cpu int8", {.threads = 1}, {});
  if (size > 0 && data[0] == '{') {
    with_input(data, size, true, [](const std::string& path) {
      const auto found = rwkv::read_adapter_config(path);
      found.rank_of("blocks.0.att.key");
      found.alpha_of("blocks.0.att.key");
    });
    return 0;
  }
  for (const auto alpha : {std::optional(8.0), std::optional<double>()})
    with_input(data, size, true, [&](const std::string& path) {
      const rwkv::AdapterSpec spec{path, alpha};
      const auto merged = rwkv::with_adapters(model(), {&spec, 1});
      require(rwkv::has_adapters(merged), "a changed model");
      rwkv::read_config(merged);
      read_tensors(merged);
    });
  for (const auto alpha : {std::optional(8.0), std::optional<double>()})
    with_input(data, size, true, [&](const std::string& path) {
      rwkv::AdapterWeights weights(loaded, {path, alpha});
      weights.pack();
      require(weights.bytes() < 8 * loaded->weight_bytes(), "no more memory than the model is worth");
    });
  with_input(data, size, true, [](const std::string& path) {
    const auto wkv = rwkv::read_tuned_state(path, config);
    require(wkv.size() == 2 * 8 * 8, "a matrix for each head");
  });
  return 0;
}
