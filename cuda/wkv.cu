#include "cuda/kernels/wkv4.cuh"
#include "cuda/kernels/wkv_decode.cuh"

RWKV_TABLE(add_wkv, RWKV_WKV_KERNELS(RWKV_ENTRY))
