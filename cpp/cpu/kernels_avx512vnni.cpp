// AVX-512 with dot products of bytes: simd/avx512.h offers dot_bytes when compiled for them.
#include "cpu/simd/avx512.h"
#define RWKV_KERNELS kAvx512Vnni
#define RWKV_KERNELS_NAME "avx512vnni"
#include "cpu/kernels/table.inl"
