// The kernels of cuda/rows.cu for the host.
#include "cuda/rows.cu"
