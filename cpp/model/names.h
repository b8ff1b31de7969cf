// One set of names for all files: those of the official checkpoints, with their orientation of every matrix.
#pragma once
#include "core/checkpoint.h"

namespace rwkv {

// Sees through what training tools put before the names, through the names of Hugging Face and GGUF files and through
// web-rwkv's .st files. Names that are not known stay. Throws ModelFormatError for what is no RWKV model by itself.
Checkpoint with_official_names(const Checkpoint& file);

}  // namespace rwkv
