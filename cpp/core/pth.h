// PyTorch zip files (.pth, torch >= 1.6) without torch: the zip directory and the few pickle opcodes that a dict or a
// list of tensors needs. Nothing in the file is executed; a pickle that names anything else is refused.
#pragma once
#include <string>
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

// Of a checkpoint, which is a dict. Throws ModelFormatError.
std::vector<TensorInfo> read_pth_index(const File& file);

// A list or tuple of tensors.
class PthList {
 public:
  explicit PthList(const std::string& path);  // throws Error, ModelFormatError

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  std::vector<float> read(size_t i) const;  // of a floating type

 private:
  File file_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace rwkv
