// The heads of EmbeddingRWKV, one for each kind of task: what makes an embedding of the mean x of the vectors at the
// end tokens of a text. LN is a layer norm with weight and bias:
//   LN(F2 relu(F1 x) + x)
// They are small and run once for a text, so they stay float32 on the host, whatever the strategy, and sum in float64
// in one fixed order.
#pragma once
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/loader.h"

namespace rwkv {

bool has_task_heads(const Checkpoint& file);  // with official names

class TaskHeads {
 public:
  static TaskHeads load(Loader& loader, int n_embd);

  // `task` is "retrieval", "classification" or "similarity". Throws Error for another, NonFiniteError.
  std::vector<double> apply(std::string_view task, std::span<const double> x) const;
  size_t bytes() const;

 private:
  struct Head {
    std::vector<float> fc1, fc2;  // (C, C)
    std::vector<float> weight, bias;
  };
  std::map<std::string, Head, std::less<>> heads_;  // by task
};

}  // namespace rwkv
