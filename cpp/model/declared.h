// What a file says of its model besides the tensors: the keys of a GGUF header, the config.json of a folder.
#pragma once
#include "core/checkpoint.h"
#include "model/config.h"

namespace rwkv {

// Throws ModelFormatError where it says something else than the tensors do, or than every RWKV computes.
void check_declared(const Checkpoint& file, const Config& config);

}  // namespace rwkv
