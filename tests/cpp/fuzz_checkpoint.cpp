// Any bytes as a model file: refused with rwkv::Error, or opened with tensors that can be read whole or in pieces
// alike, as they are and under the official names. Either way the memory in use stays within a small multiple of the
// file's size.
#include "fuzz_tensors.h"
#include "model/config.h"
#include "model/names.h"
#include "model/packed.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  with_input(data, size, true, [](const std::string& path) {
    const auto file = rwkv::Checkpoint::open(path);
    read_tensors(file);
    const auto named = rwkv::with_official_names(file);
    read_tensors(named);
    rwkv::packed_in(named);
    rwkv::read_config(named);
  });
  return 0;
}
