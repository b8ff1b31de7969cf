#include "model/declared.h"

#include <charconv>
#include <cmath>
#include <optional>

#include "core/error.h"
#include "core/folder.h"
#include "core/text.h"

namespace rwkv {
namespace {

constexpr double kNormEps = 1e-5;

std::optional<double> number(const Checkpoint& file, const std::string& key) {
  const auto at = file.metadata().find(key);
  double value = 0;
  if (at == file.metadata().end()) return std::nullopt;
  const char* const end = at->second.data() + at->second.size();
  const auto [stop, error] = std::from_chars(at->second.data(), end, value);
  return error == std::errc() && stop == end ? std::optional(value) : std::nullopt;
}

}  // namespace

void check_declared(const Checkpoint& file, const Config& c) {
  const auto expect = [&](const std::string& key, double value, const char* what) {
    const auto said = number(file, key);
    RWKV_CHECK(ModelFormatError, !said || std::fabs(*said - value) <= 1e-6 * value, file.path(), ": ", shown(key),
               ": expected ", value, ", ", what, ", found ", *said);
  };
  const auto architecture = file.metadata().find("general.architecture");
  if (file.container() == "gguf" && architecture != file.metadata().end()) {
    const std::string arch = architecture->second + ".";
    expect(arch + "block_count", c.n_layer, "the layers that have tensors");
    expect(arch + "embedding_length", c.n_embd, "the width of the embedding");
    expect(arch + "feed_forward_length", c.n_ffn, "the rows of the ffn key");
    expect(arch + "attention.layer_norm_epsilon", kNormEps, "which every RWKV has");
    return;
  }
  const std::string key = kFolderConfig;
  expect(key + "num_hidden_layers", c.n_layer, "the layers that have tensors");
  expect(key + "hidden_size", c.n_embd, "the width of the embedding");
  expect(key + "vocab_size", c.n_vocab, "the rows of the embedding");
  for (const char* eps : {"norm_eps", "layer_norm_epsilon", "layer_norm_eps"})
    expect(key + eps, kNormEps, "which every RWKV has");
  // There the group norm of a head of N has the epsilon N 1e-5, here and in official code always 64e-5.
  if (c.version[0] >= '6') expect(key + "head_dim", 64, "for which flash-linear-attention computes what RWKV does");
  const auto first = file.metadata().find(key + "norm_first");
  RWKV_CHECK(ModelFormatError, first == file.metadata().end() || first->second != "false", file.path(), ": ",
             first->first, ": expected true, as in every RWKV, found false");
}

}  // namespace rwkv
