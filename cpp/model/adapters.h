// Fine-tuned differences to a model, merged into its weights while these are read: LoRA and what it became (rank
// stabilised, PiSSA after conversion), MiSS and its forms Bone, DiSHA and Bat. Files of peft and of RWKV-PEFT.
#pragma once
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "core/checkpoint.h"

namespace rwkv {

struct AdapterSpec {
  std::string path;  // a file, or the folder that peft writes
  // LoRA adds alpha / rank times its product. A folder says its own; a file of RWKV-PEFT does not, so it must be given.
  std::optional<double> alpha = {};
  double scale = 1;  // times what the adapter adds
};

// The model under its official names, with what the adapters change of its weights, one adapter after the other: a
// matrix that one adds to becomes float32, and what one replaces too. All of an adapter's numbers of the former kind
// are held in memory as long as the result. Throws ModelFormatError for an adapter that is damaged, of a kind that this
// build does not know, or not for this model, and what `poll` throws, which is called while they are read.
Checkpoint with_adapters(const Checkpoint& opened, std::span<const AdapterSpec> adapters,
                         const std::function<void()>& poll = {});

bool has_adapters(const Checkpoint& file);

}  // namespace rwkv
