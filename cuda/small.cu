#include "cuda/kernels/mixed.cuh"

namespace rwkv::cuda {

void add_small(Entry* table) {
#define RWKV_ADD(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
  RWKV_SMALL_KERNELS(RWKV_ADD)
  RWKV_MIXED_KERNELS(RWKV_ADD)
#undef RWKV_ADD
}

}  // namespace rwkv::cuda
