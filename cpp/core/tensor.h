#pragma once
#include "core/dtype.h"

namespace rwkv {

// A view: where the numbers are and what shape they have. Never owns.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  float* row(int64_t i) const { return static_cast<float*>(data) + i * stride; }  // of an f32 tensor
  explicit operator bool() const { return data != nullptr; }
};

}  // namespace rwkv
