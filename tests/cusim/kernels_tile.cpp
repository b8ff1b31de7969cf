// The kernels of cuda/tile.cu for the host.
#include "cuda/tile.cu"
