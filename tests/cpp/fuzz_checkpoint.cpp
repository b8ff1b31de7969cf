// Any bytes as a model file: refused with rwkv::Error, or opened with tensors that can be read whole or in pieces
// alike. Either way the memory in use stays within a small multiple of the file's size.
#include "fuzz_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  with_input(data, size, true, [](const std::string& path) { read_tensors(rwkv::Checkpoint::open(path)); });
  return 0;
}
