#include "cuda/kernels/sample.cuh"

RWKV_TABLE(add_sample, RWKV_SAMPLE_KERNELS(RWKV_ENTRY))
