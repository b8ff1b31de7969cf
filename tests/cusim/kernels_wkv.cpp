// The kernels of cuda/wkv.cu for the host.
#include "cuda/wkv.cu"
