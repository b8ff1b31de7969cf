#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"

namespace rwkv {

// Numbers where they lie, for whoever goes on with them there. Nobody writes them.
struct DeviceArray {
  DeviceId device;
  const void* data = nullptr;
  std::vector<int64_t> shape, strides;  // strides in numbers
  std::shared_ptr<const void> keeper;   // as long as somebody has it, the numbers stay
  DType dtype = DType::f32;             // or f16
};

// Memory for results that stay on a device. What is given back is used again: allocating is dear there.
class ResultMemory : public std::enable_shared_from_this<ResultMemory> {
 public:
  explicit ResultMemory(std::shared_ptr<Backend> backend) : backend_(std::move(backend)) {}

  std::shared_ptr<std::byte> take(size_t bytes);

 private:
  const std::shared_ptr<Backend> backend_;
  std::mutex mutex_;
  std::vector<Memory> free_;
};

// The keeper of memory that other libraries use on that device: what they have asked for may go on after they have let
// go of it, so it is waited for before the memory is used again.
std::shared_ptr<const void> lent(std::shared_ptr<Backend> backend, std::shared_ptr<const void> memory);

}  // namespace rwkv
