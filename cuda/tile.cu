#include "cuda/kernels/tile.cuh"

RWKV_TABLE(add_tile, RWKV_TILE_KERNELS(RWKV_ENTRY))
