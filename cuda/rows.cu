#include "cuda/kernels/pack.cuh"
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/rows.cuh"

namespace rwkv::cuda {

void add_rows(Entry* table) {
#define RWKV_ADD(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
  RWKV_ROW_KERNELS(RWKV_ADD)
#undef RWKV_ADD
}

}  // namespace rwkv::cuda
