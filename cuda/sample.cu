#include "cuda/kernels/sample.cuh"

namespace rwkv::cuda {

void add_sample(Entry* table) {
#define RWKV_ADD(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
  RWKV_SAMPLE_KERNELS(RWKV_ADD)
#undef RWKV_ADD
}

}  // namespace rwkv::cuda
