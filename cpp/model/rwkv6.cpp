#include "model/rwkv6.h"

#include <algorithm>

#include "core/error.h"

namespace rwkv::v6 {

std::vector<StatePart> Layer::state_parts(const Config& c) {
  return {{"att.shift", {c.n_embd}}, {"att.wkv", {c.n_head, c.head_size, c.head_size}}, {"ffn.shift", {c.n_embd}}};
}

Layer Layer::load(Loader& loader, const Config& c, int index, Formats formats) {
  const std::string block = join("blocks.", index, "."), att = block + "att.";
  Layer layer;
  TimeMix& t = layer.time_mix;
  t.norm = loader.norm(block + "ln1", c.n_embd, 1e-5f);
  t.mu_x = load_mu(loader, c, att, 'x');
  for (int q = 0; q < kMixed; q++) t.mu[size_t(q)] = load_mu(loader, c, att, "wkvrg"[q]);

  // The five pairs lie in two tensors, (C, 5 D) and (5, D, C).
  const int rank = int(loader.dimension(att + "time_maa_w2", 1));
  const auto in = loader.factors(att + "time_maa_w1", {c.n_embd, kMixed * rank}, kMixed, rank, c.n_embd,
                                 {.part = rank, .row = 1, .col = kMixed * rank}, formats.small);
  const auto out = loader.factors(att + "time_maa_w2", {kMixed, rank, c.n_embd}, kMixed, c.n_embd, rank,
                                  {.part = int64_t(rank) * c.n_embd, .row = 1, .col = c.n_embd}, formats.small);
  std::ranges::copy(in, t.mix_in.begin());
  std::ranges::copy(out, t.mix_out.begin());
  const int decay_rank = int(loader.dimension(att + "time_decay_w1", 1));
  t.decay_in = loader.matrix(att + "time_decay_w1", decay_rank, c.n_embd, formats.small, true);
  t.decay_out = loader.matrix(att + "time_decay_w2", c.n_att, decay_rank, formats.small, true);

  const auto wide = [&](const char* name) { return loader.matrix(att + name, c.n_att, c.n_embd, formats.large); };
  t.receptance = wide("receptance.weight"), t.key = wide("key.weight"), t.value = wide("value.weight");
  t.gate = wide("gate.weight");
  t.output = loader.matrix(att + "output.weight", c.n_embd, c.n_att, formats.large);
  t.decay = loader.vector(att + "time_decay", {c.n_att});
  t.bonus = loader.vector(att + "time_faaaa", {c.n_head, c.head_size});
  t.out = loader.norm(att + "ln_x", c.n_att, 64e-5f);
  layer.channel_mix = load_channel_mix(loader, c, index, formats.large);
  return layer;
}

Scratch::Scratch(Arena& arena, const Backend& backend, const Config& c, const std::vector<Layer>& layers, int rows)
    : channel_mix({arena, backend, rows}, c) {
  const Carver carve{arena, backend, rows};
  // Ranks may differ from layer to layer: each buffer is as wide as the widest, and a product uses what it needs.
  int rank_of_mix = 0, rank_of_w = 0;
  for (const Layer& layer : layers) {
    rank_of_mix = std::max(rank_of_mix, layer.time_mix.mix_in[0].rows);
    rank_of_w = std::max(rank_of_w, layer.time_mix.decay_in.rows);
  }
  for (Tensor* t : {&r, &k, &v, &g, &w}) *t = carve.tensor(c.n_att);
  partial = carve.tensor(c.n_embd);
  for (Tensor& t : low) t = carve.tensor(rank_of_mix);
  for (Tensor& t : dynamic) t = carve.tensor(c.n_embd);
  low_w = carve.tensor(rank_of_w), rank_w = carve.operand(rank_of_w);
  for (Operand& o : rank) o = carve.operand(rank_of_mix);
  for (Operand& o : mixed) o = carve.operand(c.n_embd);
  mixed_x = carve.operand(c.n_embd), y = carve.operand(c.n_att);
}

void Scratch::set_formats(Formats formats) {
  for (Operand& o : rank) o.format = formats.small;
  for (Operand& o : mixed) o.format = formats.large;
  for (Operand* o : {&mixed_x, &mixed[kDecay], &rank_w}) o->format = formats.small;
  y.format = formats.large;
  channel_mix.set_format(formats.large);
}

void time_mix(Verbs& b, const TimeMix& p, const Config& config, size_t shift, StatePlace wkv, const Batch& batch,
              Scratch& s, const Tensor& x) {
  const MixJob first[] = {{p.mu_x, s.mixed_x}};
  Each<LinearJob> in, out;
  Each<MixJob> mixes;
  for (size_t q = 0; q < kMixed; q++) {
    s.rank[q].cols = p.mix_in[q].rows;
    in[q] = {s.mixed_x, p.mix_in[q], s.low[q], Act::tanh, s.rank[q]};
    out[q] = {s.rank[q], p.mix_out[q], s.dynamic[q]};
    mixes[q] = {p.mu[q], s.mixed[q], s.dynamic[q]};
  }
  b.mix_linear(x, p.norm, first, shift, batch, in, Backend::Shift::keep);
  b.linear(out);

  s.rank_w.cols = p.decay_in.rows;
  const LinearJob wide[] = {{s.mixed[kReceptance], p.receptance, s.r},
                            {s.mixed[kKey], p.key, s.k},
                            {s.mixed[kValue], p.value, s.v},
                            {s.mixed[kGate], p.gate, s.g, Act::silu},
                            {s.mixed[kDecay], p.decay_in, s.low_w, Act::tanh, s.rank_w}};
  b.mix_linear(x, p.norm, mixes, shift, batch, wide);
  b.linear_wkv6({s.rank_w, p.decay_out, s.w},
                {s.r, s.k, s.v, s.g, s.w, p.decay, p.bonus, p.out, config.n_head, config.head_size}, wkv, batch, s.y);

  const LinearJob residual[] = {{s.y, p.output, s.partial, Act::none, {}, x}};
  b.linear(residual);
}

}  // namespace rwkv::v6
