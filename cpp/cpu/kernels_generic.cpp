// Plain C++, for every machine.
#include "cpu/simd/generic.h"
#define RWKV_KERNELS kGeneric
#define RWKV_KERNELS_NAME "generic"
#include "cpu/kernels/table.inl"
