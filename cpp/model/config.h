#pragma once
#include <string>
#include <string_view>

#include "core/checkpoint.h"

namespace rwkv {

// The numbers of a model, all read from the shapes of its tensors.
struct Config {
  std::string version;                  // "4", "5.0", "5.1", "5.2", "6", "7" or "7a"
  std::string kind = "language model";  // or "embedding model"
  int n_layer = 0, n_embd = 0;
  int n_head = 0, head_size = 0;  // zero in RWKV-4, which has no heads
  int n_ffn = 0, n_vocab = 0;
  int n_att = 0;  // A, the channels of the recurrence; in RWKV-7 the embedding's

  bool is_embedding() const { return kind == "embedding model"; }  // EmbeddingRWKV: task heads, and no logits
};

bool is_version(std::string_view name);  // of those that this build runs

// Recognises the version from the tensor names and reads the shapes. Throws ModelFormatError, naming the version of a
// model that this build does not run.
Config read_config(const Checkpoint& file);

}  // namespace rwkv
