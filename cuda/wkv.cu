#include "cuda/kernels/wkv4.cuh"
#include "cuda/kernels/wkv6.cuh"
#include "cuda/kernels/wkv7.cuh"

namespace rwkv::cuda {

void add_wkv(Entry* table) {
#define RWKV_ADD(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
  RWKV_WKV_KERNELS(RWKV_ADD)
#undef RWKV_ADD
}

}  // namespace rwkv::cuda
