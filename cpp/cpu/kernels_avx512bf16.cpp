// AVX-512 with dot products of bytes and of bf16: simd/avx512.h offers both when compiled for them.
#include "cpu/simd/avx512.h"
#define RWKV_KERNELS kAvx512Bf16
#define RWKV_KERNELS_NAME "avx512bf16"
#include "cpu/kernels/table.inl"
