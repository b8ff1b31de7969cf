// AVX-512 with dot products of bytes, and tiles for products of int8 and bf16 with many tokens.
#include "cpu/simd/amx.h"
#define RWKV_KERNELS kAvx512Amx
#define RWKV_KERNELS_NAME "avx512amx"
#include "cpu/kernels/table.inl"
