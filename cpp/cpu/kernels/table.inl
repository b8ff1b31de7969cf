// The one symbol of an instruction set's object. A file that names its set as RWKV_KERNELS and RWKV_KERNELS_NAME and
// has included its simd/*.h includes this.
#include "cpu/kernels/columns.inl"
#include "cpu/kernels/linear.inl"
#include "cpu/kernels/row.inl"
#include "cpu/kernels/sample.inl"
#include "cpu/kernels/wkv4.inl"
#include "cpu/kernels/wkv6.inl"
#include "cpu/kernels/wkv7.inl"

namespace rwkv::cpu {
namespace {

// As measured at 768 and 2048 columns.
#if defined(RWKV_TILES)
constexpr int kFloatWork = 20, kPairWork = 4;
#elif defined(RWKV_DOT_PAIRS)
constexpr int kFloatWork = 14, kPairWork = 9;
#elif defined(RWKV_DOT_BYTES)
constexpr int kFloatWork = 10, kPairWork = 10;
#else
constexpr int kFloatWork = 5, kPairWork = 5;
#endif

}  // namespace

const Kernels RWKV_KERNELS = {
    RWKV_KERNELS_NAME, kTileTokens,  kNarrowTile,  kFloatWork,    kPairWork, product, column_product, live_columns,
    pack_rows,         layer_norm,   lerp,         small_product, widen,     wkv4,    wkv6,           wkv7,
    all_finite,        block_maxima, exponentials, block_sums,    collect};

}  // namespace rwkv::cpu
