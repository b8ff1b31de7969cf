// Reading all tensors of what a fuzz target has opened. To be included by one file of a program.
#pragma once
#include <algorithm>
#include <vector>

#include "core/checkpoint.h"
#include "fuzz_files.h"

namespace {

void read_tensors(const rwkv::Checkpoint& checkpoint) {
  constexpr int64_t kMost = 4096;
  size_t some = 0;
  for (const rwkv::TensorInfo& named : checkpoint.tensors()) {
    require(checkpoint.find(named.name) == &named, "a tensor under its name");
    if (++some > 64) continue;
    const rwkv::TensorInfo tensor = named.packed.empty() ? named : named.bytes();
    const auto width = int64_t(size_of(tensor.dtype));
    const int64_t count = tensor.count(), all = std::min(count, kMost);
    for (const int64_t first : {int64_t(0), (count - all) / 2, count - all}) {
      std::vector<char> whole(size_t(all * width)), pieces(size_t(all * width));
      checkpoint.read(tensor, first, all, whole.data());
      const int64_t cut = all / 3;
      checkpoint.read(tensor, first, cut, pieces.data());
      checkpoint.read(tensor, first + cut, all - cut, pieces.data() + cut * width);
      require(whole == pieces, "the same values in pieces");
    }
  }
}

}  // namespace
