// Products of more than 64 tokens by cuBLASLt, where it is wanted and found: what it needs on the device, and whether
// it still works. Whoever asks has products of his own for when it does not.
#pragma once
#include <mutex>
#include <string>

#include "backend/backend.h"
#include "cuda/context.h"
#include "cuda/cublaslt.h"

namespace rwkv::cuda {

class LargeProducts {
 public:
  explicit LargeProducts(Context& context);
  ~LargeProducts();
  LargeProducts(const LargeProducts&) = delete;

  std::string description() const;  // ", cublaslt 13.1.0" or ", without cublaslt: " and why
  void prepare(const StepShape& shape);
  // Whether it is for products of this matrix with so many tokens.
  bool takes(const Linear& w, int tokens) const;
  // False if it does not work, now and from now on.
  bool multiply(const PlainProduct& product);

  // For a matrix and an operand as plain rows, and for sums.
  void* matrix() const { return matrix_.data.get(); }
  void* operand() const { return operand_.data.get(); }
  float* sums() const { return reinterpret_cast<float*>(sums_.data.get()); }

 private:
  void close();
  void end(const std::string& why);

  Context& context_;
  std::unique_ptr<CublasLt> lt_;  // null: it does not work
  mutable std::mutex saying_;
  std::string said_;
  Memory matrix_, operand_, sums_, workspace_;
};

}  // namespace rwkv::cuda
