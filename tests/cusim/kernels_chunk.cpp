// The kernels of cuda/chunk.cu for the host.
#include "cuda/chunk.cu"
