#include "model/tuned_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string_view>

#include "core/checkpoint.h"
#include "core/error.h"
#include "core/text.h"
#include "model/names.h"

namespace rwkv {
namespace {

constexpr std::string_view kEnd = ".att.time_state";

// What people pass by mistake, by a part of a tensor's name.
struct Known {
  std::string_view part, what;
};
constexpr std::array<Known, 7> kKnown = {
    {{"att.wkv", "a saved state, which load_state() opens"},
     {"lora_", "an adapter, which Engine(model, adapters=...) takes"},
     {".disha", "an adapter, which Engine(model, adapters=...) takes"},
     {".bone", "an adapter, which Engine(model, adapters=...) takes"},
     {".miss_block", "an adapter, which Engine(model, adapters=...) takes"},
     {"emb.", "a model; one with a tuned state inside begins with it by itself"},
     {"embeddings.", "a model; one with a tuned state inside begins with it by itself"}}};

[[noreturn]] void refuse(const Config& config, std::span<const ArrayShape> arrays, const ArrayShape& odd,
                         const std::string& where) {
  for (const Known& known : kKnown)
    for (const ArrayShape& a : arrays)
      RWKV_CHECK(StateError, a.name.find(known.part) == a.name.npos, where, ": expected ", tuned_state_name(0), " to ",
                 tuned_state_name(config.n_layer - 1), ", found ", shown(a.name), ": this is ", known.what);
  throw StateError(join(where, ": expected ", tuned_state_name(0), " to ", tuned_state_name(config.n_layer - 1),
                        " and nothing else, found ", shown(odd.name), " ", shape_text(odd.shape)));
}

}  // namespace

std::string tuned_state_name(int layer) { return join("blocks.", layer, kEnd); }
bool is_tuned_state(std::string_view name) { return name.ends_with(kEnd); }

std::vector<size_t> find_tuned_layers(const Config& config, std::span<const ArrayShape> arrays,
                                      const std::string& where) {
  RWKV_CHECK(StateError, config.n_head > 0, where, ": expected a model of RWKV-5, 6 or 7, whose states are matrices, ",
             "for a tuned state, found RWKV-", config.version);
  const std::vector<int64_t> shape = {config.n_head, config.head_size, config.head_size};
  constexpr size_t kNone = SIZE_MAX;
  std::vector<size_t> layers(size_t(config.n_layer), kNone);
  for (size_t i = 0; i < arrays.size(); i++) {
    const ArrayShape& a = arrays[i];
    int layer = 0;
    while (layer < config.n_layer && a.name != tuned_state_name(layer)) layer++;
    if (layer == config.n_layer) refuse(config, arrays, a, where);
    RWKV_CHECK(StateError, layers[size_t(layer)] == kNone, where, ": expected each layer once, found ", a.name,
               " twice");
    RWKV_CHECK(StateError, a.shape == shape, where, ": ", a.name, ": expected ", shape_text(shape), ", found ",
               shape_text(a.shape));
    layers[size_t(layer)] = i;
  }
  const auto missing = std::ranges::find(layers, kNone);
  RWKV_CHECK(StateError, missing == layers.end(), where, ": expected ", config.n_layer, " layers, found ",
             arrays.size(), ", without ", tuned_state_name(int(missing - layers.begin())));
  return layers;
}

std::vector<float> read_tuned_state(const std::string& path, const Config& config) try {
  const Checkpoint file = without_wrappers(Checkpoint::open(path));
  std::vector<ArrayShape> arrays;
  for (const TensorInfo& t : file.tensors()) arrays.push_back({t.name, t.shape});
  std::vector<float> wkv;
  for (const size_t i : find_tuned_layers(config, arrays, path)) {
    const TensorInfo& t = file.tensors()[i];
    RWKV_CHECK(StateError, is_float(t.dtype) && t.dtype != DType::f64, path, ": ", t.name,
               ": expected numbers as f32, f16 or bf16, found ", name_of(t.dtype));
    const auto count = size_t(t.count());
    std::vector<std::byte> raw(count * size_of(t.dtype));
    file.read(t, 0, t.count(), raw.data());
    wkv.resize(wkv.size() + count);
    const auto layer = std::span(wkv).last(count);
    to_f32(raw.data(), t.dtype, count, layer.data());
    expect_finite(layer, path, t.name);
  }
  return wkv;
} catch (const ModelFormatError& error) {
  throw StateError(error.what());
}

void expect_finite(std::span<const float> values, const std::string& where, const std::string& name) {
  const auto odd = std::ranges::find_if(values, [](float v) { return !std::isfinite(v); });
  RWKV_CHECK(StateError, odd == values.end(), where, ": ", name, ": expected finite numbers, found ", *odd);
}

}  // namespace rwkv
