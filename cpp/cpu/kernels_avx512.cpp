// AVX-512 F, BW, DQ, VL.
#include "cpu/simd/avx512.h"
#define RWKV_KERNELS kAvx512
#define RWKV_KERNELS_NAME "avx512"
#include "cpu/kernels/table.inl"
