#include "cuda/kernels/wkv7_carry.cuh"
#include "cuda/kernels/wkv7_chunk.cuh"

namespace rwkv::cuda {

void add_chunk(Entry* table) {
#define RWKV_ADD(name, source, ...) table[uint32_t(Kernel::name)] = entry source;
  RWKV_CHUNK_KERNELS(RWKV_ADD)
#undef RWKV_ADD
}

}  // namespace rwkv::cuda
