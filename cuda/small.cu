#include "cuda/kernels/mixed.cuh"

RWKV_TABLE(add_small, RWKV_SMALL_KERNELS(RWKV_ENTRY) RWKV_MIXED_KERNELS(RWKV_ENTRY))
