// The channel mix of RWKV-4, 5 and 6, with x the residual and prev the previous token's xn (0 at the start):
//   xn = LN2(x);  x_q = xn + (prev - xn) * mu_q  for q in k r;  x += sigmoid(R x_r) * (V relu(K x_k)^2)
#pragma once
#include <string>

#include "model/config.h"
#include "model/loader.h"
#include "model/scratch.h"

namespace rwkv {

struct ChannelMix {
  Norm norm;                      // ln2
  Tensor mu_k, mu_r;              // (1, C)
  Linear key, value, receptance;  // (F, C), (C, F), (C, C)
};

struct ChannelMixScratch {
  Tensor hidden, gate, partial;  // (T, F) and (T, C)
  Operand mixed_k, mixed_r, key;

  ChannelMixScratch(const Carver& carve, const Config& config);
  void set_format(Format format);
};

// The mu of a lerp. Before RWKV-6 files hold what xn is multiplied with, 1 - mu. `part` is "blocks.0.att." or such.
Tensor load_mu(Loader& loader, const Config& config, const std::string& part, char q);

ChannelMix load_channel_mix(Loader& loader, const Config& config, int index, Format format);
void channel_mix(Verbs& verbs, const ChannelMix& p, size_t shift, const Batch& batch, ChannelMixScratch& s,
                 const Tensor& x);

}  // namespace rwkv
