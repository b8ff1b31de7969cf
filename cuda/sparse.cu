#include "cuda/kernels/sparse.cuh"

namespace rwkv::cuda {

void add_sparse(Entry* table) {
#define RWKV_ADD(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
  RWKV_SPARSE_KERNELS(RWKV_ADD)
#undef RWKV_ADD
}

}  // namespace rwkv::cuda
