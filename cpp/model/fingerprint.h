#pragma once
#include <array>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "model/config.h"

namespace rwkv {

inline constexpr const char* kFingerprintKey = "rwkv_fingerprint";  // in the metadata of files that we write

// Names a model by its weights: SHA-256 over the configuration and up to 4,096 values, at fixed strides, of every
// tensor that the model uses, by canonical (.pth) name and orientation, in float32. Independent of container and
// strategy.
class Fingerprint {
 public:
  static constexpr int64_t kSamples = 4096;

  // Which elements of a tensor count: number `i` of samples(count) is element position(i, count).
  static int64_t samples(int64_t count) { return count < kSamples ? count : kSamples; }
  static int64_t position(int64_t i, int64_t count);
  // Writes to `samples`, which are samples(count), those of a tensor of `count` elements that lie in [first, first +
  // some), which `data` holds. In any order, and from several threads at once.
  static void take(std::span<float> samples, int64_t count, int64_t first, int64_t some, const void* data, DType dtype);

  void add(const std::string& name, const std::vector<int64_t>& shape, std::span<const float> samples);
  std::string hex(const Config& config) const;

 private:
  std::map<std::string, std::string> tensors_;  // name to digest: the order of loading does not matter
};

}  // namespace rwkv
