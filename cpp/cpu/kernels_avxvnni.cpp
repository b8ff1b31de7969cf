// AVX2 with dot products of bytes: simd/avx2.h offers dot_bytes when compiled for them.
#include "cpu/simd/avx2.h"
#define RWKV_KERNELS kAvxVnni
#define RWKV_KERNELS_NAME "avxvnni"
#include "cpu/kernels/table.inl"
