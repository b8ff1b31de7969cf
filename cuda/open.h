#pragma once
#include <memory>

#include "backend/backend.h"

namespace rwkv::cuda {

// Device `index` of the CUDA library. Throws DeviceError where this build or this machine has none of that number.
std::shared_ptr<Backend> open(int index, const DeviceOptions& options);

// Whether it has one that takes every precision.
bool available();

}  // namespace rwkv::cuda
