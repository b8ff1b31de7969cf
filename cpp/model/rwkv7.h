// RWKV-7 "Goose". Per layer, with x the residual and prev the previous token's xn (0 at the start):
//   xn = LN1(x);  x_q = xn + (prev - xn) * mu_q                      for q in r w k v a g
//   r = R x_r;  k = K x_k;  v = V x_v
//   w = exp(-exp(-1/2) sigmoid(w0 + tanh(x_w W1) W2));  a = sigmoid(a0 + (x_a A1) A2);  g = sigmoid(x_g G1) G2
//   layer 0: v_first = v;  later: v += (v_first - v) sigmoid(v0 + (x_v V1) V2)
//   per head: kk = normalise(k k_k);  k *= 1 + (a - 1) k_a
//             S = S diag(w) - (S kk)(kk a)^T + v k^T;  y = S r       S: (value, key)
//   x += O ((GroupNorm(y) + (sum r k r_k) v) g)
//   xn = LN2(x);  x += V' relu(K' (xn + (prev - xn) mu))^2
// Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution", 2025.
//
// RWKV-7a, "DeepEmbed": every layer has a table with a small matrix (D, D) for each token, of which a part is stored
// and a part made from the embedding. With e the normed embedding of the token, E_t = table[token] + S e:
//   x += V' (relu(K' ..)^2 (s0 + ((xn S1) E_t) S2))
#pragma once
#include <vector>

#include "model/config.h"
#include "model/loader.h"
#include "model/scratch.h"
#include "model/state_layout.h"

namespace rwkv::v7 {

enum Part { kShiftAtt, kWkv, kShiftFfn };  // of a layer's state, in the order of its parts

struct TimeMix {
  Norm norm;                                  // ln1
  Tensor mu_r, mu_w, mu_k, mu_v, mu_a, mu_g;  // (1, C)
  Linear receptance, key, value, output;      // (C, C)
  Linear w1, w2, a1, a2, g1, g2, v1, v2;      // (D, C) and (C, D), each its own D; layer 0: no v1, v2
  Tensor w0, a0, v0, k_k, k_a, r_k;           // (1, C)
  Norm out;                                   // ln_x, one group per head
};

// Of RWKV-7a.
struct DeepEmbedding {
  Tensor table;   // (V, D D), in the file where that can be
  Linear base;    // S: (D D, C)
  Linear s1, s2;  // (D, C), (F, D)
  Tensor s0;      // (1, F)
  Tensor no_mu;   // (1, C) zeros: xn itself
};

struct ChannelMix {
  Norm norm;          // ln2
  Tensor mu;          // (1, C)
  Linear key, value;  // (F, C), (C, F)
  DeepEmbedding deep;
};

struct Scratch;
struct Layer {
  using Scratch = v7::Scratch;  // what a step over such layers needs
  TimeMix time_mix;
  ChannelMix channel_mix;

  static std::vector<StatePart> state_parts(const Config& config);
  static Layer load(Loader& loader, const Config& config, int index, Formats formats);
};

// Activations of one step over T rows, carved anew for every step: only pointers move.
struct Scratch {
  Tensor r, w, k, v, a, g, v_mix, v_first, partial;  // (T, C)
  Tensor low_w, low_a, low_g, low_v;                 // (T, D) partial sums of the rank-in products
  Tensor hidden;                                     // (T, F) partial sums of the ffn key; of RWKV-7a its results
  Operand mixed_r, mixed_w, mixed_k, mixed_v, mixed_a, mixed_g, rank_w, rank_a, rank_g, rank_v, y, key;
  Operand narrow_v;  // x_v for V1 where its format is not that of V
  // Of RWKV-7a; otherwise empty.
  Tensor z, base, gate;                 // (T, D), (T, D D), (T, F) partial sums
  Operand embedded, unmixed, products;  // (T, C), (T, C), (T, D); `embedded` is written before a stage's first layer

  Scratch(Arena& arena, const Backend& backend, const Config& config, const std::vector<Layer>& layers, int rows);
  void set_formats(Formats formats);
};

// The two halves of a layer over the batch: x (T, C) in place.
void time_mix(Verbs& verbs, const Layer& layer, const Config& config, size_t shift, StatePlace wkv, const Batch& batch,
              Scratch& s, const Tensor& x);
void channel_mix(Verbs& verbs, const ChannelMix& p, size_t shift, const Batch& batch, Scratch& s, const Tensor& x);

// Both, on layer `index` of the states; calls `check` after each.
template <class Check>
void step(Verbs& verbs, const Layer& layer, const Config& config, const StateLayout& layout, int index,
          const Batch& batch, Scratch& s, const Tensor& x, const Check& check) {
  time_mix(verbs, layer, config, layout.offset(index, kShiftAtt), layout.place(index, kWkv), batch, s, x);
  check();
  channel_mix(verbs, layer.channel_mix, layout.offset(index, kShiftFfn), batch, s, x);
  check();
}

}  // namespace rwkv::v7
