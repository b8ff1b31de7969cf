// Products of many tokens by cuBLASLt, which is looked for when it is first wanted and is no part of any build. What is
// needed of its interface, the same in versions 12 and 13, is declared in cublaslt.cpp.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "cuda/layout.h"

namespace rwkv::cuda {

// y[token][output] = sum over k of x[token][k] and w; strides in elements.
struct PlainProduct {
  Stored format;    // of w and x, f16 or bf16
  bool by_columns;  // w is [k][output], otherwise [output][k]
  const void *w, *x;
  float* y;
  int outputs, k, tokens;
  int64_t ld_w, ld_x, ld_y;
};

class CublasLt {
 public:
  // For the device that the calling thread uses: the first library that can be used. Throws DeviceError that says of
  // each place why there is none.
  CublasLt();
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;

  const std::string& version() const { return version_; }  // "13.1.0"
  // In the order of the stream; on the thread that uses its device. Throws DeviceError with what has failed.
  void multiply(const PlainProduct& product, void* workspace, size_t bytes, void* stream);

 private:
  struct Functions;
  struct Plan;
  void open(const std::string& place);  // throws Error
  using Key = std::tuple<Stored, bool, int, int, int, int64_t, int64_t, int64_t>;
  const Plan& plan_for(const PlainProduct& product, size_t bytes);

  std::unique_ptr<const Functions> lt_;
  std::string version_;
  void* handle_ = nullptr;
  const int64_t process_;
  std::map<Key, std::unique_ptr<Plan>> plans_;  // of the shapes so far
};

}  // namespace rwkv::cuda
