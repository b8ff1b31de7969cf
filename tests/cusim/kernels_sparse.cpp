// The kernels of cuda/sparse.cu for the host.
#include "cuda/sparse.cu"
