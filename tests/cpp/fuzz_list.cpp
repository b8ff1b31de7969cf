// Any bytes as a list of tensors that torch.save wrote: refused with rwkv::Error, or all of them can be read.
#include "core/pth.h"
#include "fuzz_files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  with_input(data, size, true, [](const std::string& path) {
    const rwkv::PthList list(path);
    require(!list.tensors().empty(), "a tensor");
    for (size_t i = 0; i < list.tensors().size(); ++i) {
      const auto& tensor = list.tensors()[i];
      if (is_float(tensor.dtype)) require(list.read(i).size() == size_t(tensor.count()), "all numbers of a tensor");
    }
  });
  return 0;
}
