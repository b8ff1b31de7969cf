// The kernels of cuda/sample.cu for the host.
#include "cuda/sample.cu"
