#include "cuda/kernels/pack.cuh"
#include "cuda/kernels/plain.cuh"
#include "cuda/kernels/rows.cuh"

RWKV_TABLE(add_rows, RWKV_ROW_KERNELS(RWKV_ENTRY))
