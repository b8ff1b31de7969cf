// AVX2, FMA, F16C.
#include "cpu/simd/avx2.h"
#define RWKV_KERNELS kAvx2
#define RWKV_KERNELS_NAME "avx2"
#include "cpu/kernels/table.inl"
