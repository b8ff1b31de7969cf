// The tensors of one adapter, by the official names of the weights that they belong to.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint.h"
#include "model/adapter_config.h"

namespace rwkv {

// What a tensor is to its weight, by the end of its name; LoRA's kinds come first.
enum class AdapterPart {
  lora_a,
  lora_b,
  embedding_a,  // LoRA of a table, turned: (rank, V) and (C, rank)
  embedding_b,
  disha,  // MiSS and Bat as RWKV-PEFT writes them, older ones as "bone"
  miss    // and as peft does
};

struct AdapterFile {
  using Parts = std::map<AdapterPart, TensorInfo>;

  Checkpoint file;
  std::optional<AdapterConfig> config;     // peft's
  std::map<std::string, Parts> additions;  // by module: "blocks.0.att.key"
  std::vector<TensorInfo> replacements;    // trained in full, by the name of the weight
};

// Throws ModelFormatError.
AdapterFile open_adapter(const std::string& path);

}  // namespace rwkv
