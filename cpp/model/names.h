// One set of names for all files: those of the official checkpoints, with their orientation of every matrix.
#pragma once
#include "core/checkpoint.h"

namespace rwkv {

// Sees through what training tools put before the names, through the names of Hugging Face and GGUF files and through
// web-rwkv's .st files. Names that are not known stay, and so do all of a file that adapters were merged into. Throws
// ModelFormatError for what is no RWKV model by itself.
Checkpoint with_official_names(const Checkpoint& file);

// The same tensors without what training tools put before their names. Throws ModelFormatError if two become one.
Checkpoint without_wrappers(const Checkpoint& file);

}  // namespace rwkv
