#include "cuda/kernels/sparse.cuh"

RWKV_TABLE(add_sparse, RWKV_SPARSE_KERNELS(RWKV_ENTRY))
