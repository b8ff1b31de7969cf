// The kernels of cuda/small.cu for the host.
#include "cuda/small.cu"
