// PyTorch zip checkpoints (.pth, torch >= 1.6) without torch: the zip directory and the few pickle opcodes that a
// state dict needs. Nothing in the file is executed; a pickle that names anything else is refused.
#pragma once
#include <vector>

#include "core/checkpoint.h"

namespace rwkv {

std::vector<TensorInfo> read_pth_index(const File& file);  // throws ModelFormatError

}  // namespace rwkv
