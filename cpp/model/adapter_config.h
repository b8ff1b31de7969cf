// The adapter_config.json that peft writes beside the tensors of an adapter.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkv {

struct AdapterConfig {
  // What modules have of their own, by the end of their names.
  using Pattern = std::vector<std::pair<std::string, double>>;

  std::string type;  // "LORA", "MISS" or "BONE"
  double rank = 8, alpha = 8, mini_rank = 1;
  bool root_of_rank = false;  // alpha is divided by the root of the rank
  std::string init = "true";  // how training began, which of MISS and BONE is also the kind: "true", "bat", "mini"
  Pattern ranks, alphas;

  double rank_of(std::string_view module) const;
  double alpha_of(std::string_view module) const;
};

// Throws ModelFormatError for what is no such file, and for kinds and options that change the formula in ways that this
// build does not know, naming them.
AdapterConfig read_adapter_config(const std::string& path);

}  // namespace rwkv
