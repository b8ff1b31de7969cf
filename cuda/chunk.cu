#include "cuda/kernels/wkv7_carry.cuh"
#include "cuda/kernels/wkv7_chunk.cuh"

RWKV_TABLE(add_chunk, RWKV_CHUNK_KERNELS(RWKV_ENTRY))
