// The kernels as nvcc compiles them, translated by ptx.py, beside those that the host's compiler makes of the same
// sources: a launch runs both, and whatever differs in the device's memory is an error.
#pragma once
#include <string>

#include "cuda/kernels.h"
#include "cusim/fibers.h"
#include "cusim/memory.h"
#include "cusim/options.h"

namespace cusim {

// Of those that are not translated `call` is null, and a launch runs the other one.
const rwkv::cuda::Entry& ptx_kernel(uint32_t kernel);
std::string run_translated(const Start& start, const rwkv::cuda::Entry& ptx, DeviceMemory& memory,
                           const Options& options);

}  // namespace cusim
