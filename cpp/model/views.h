// The tensors of a checkpoint under other names and as other views of themselves, collected one by one.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/checkpoint.h"
#include "core/error.h"
#include "core/text.h"

namespace rwkv {

class Views {
 public:
  explicit Views(const Checkpoint& file) : file_(file) {}

  TensorInfo& same(const TensorInfo& t, std::string name);
  TensorInfo& transposed(const TensorInfo& t, std::string name);                // the last two dimensions
  TensorInfo& heads(const TensorInfo& t, std::string name, int64_t head_size);  // (H N) as (H, N)
  // Rows of a matrix, which may have dimensions of one between the two: row i as (1, 1, C), called stem + letters[i].
  void rows(const TensorInfo& t, const std::string& stem, std::string_view letters);

  std::vector<TensorInfo> take();  // throws ModelFormatError if two have the same name

  template <class... Parts>
  void expect(bool condition, const TensorInfo& t, const Parts&... expected) const {
    RWKV_CHECK(ModelFormatError, condition, file_.path(), ": ", shown(t.name), ": expected ", expected..., ", found ",
               shape_text(t.shape));
  }

 private:
  const Checkpoint& file_;
  std::vector<TensorInfo> out_;
};

// "12.attn_norm.weight" -> 12, and the rest stays in `name`; nothing if it does not begin with a number and a dot.
std::optional<int> take_block(std::string_view& name);

}  // namespace rwkv
