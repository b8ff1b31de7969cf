#pragma once
#include <string_view>

#include "cuda/device.h"

namespace rwkv::cuda {

// The library beside this code, librwkv_cuda.so, or the one that the environment's RWKV_CUDA_LIBRARY names; opened when
// it is first asked for and kept. Throws DeviceError, naming `device`, where there is none or it is of another build.
const DeviceApi& library(std::string_view device);

}  // namespace rwkv::cuda
