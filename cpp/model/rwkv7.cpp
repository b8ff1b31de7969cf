#include "model/rwkv7.h"

#include <algorithm>
#include <initializer_list>

#include "core/error.h"

namespace rwkv::v7 {

constexpr int kMaxDeepRank = 1024;  // of files; 32 in all that are known

namespace {

DeepEmbedding load_deep_embedding(Loader& loader, const Config& c, const std::string& ffn, Format format) {
  DeepEmbedding d;
  const int rank = int(loader.dimension(ffn + "s1", 1));
  RWKV_CHECK(ModelFormatError, rank <= kMaxDeepRank, ffn, "s1: expected a rank of at most ", kMaxDeepRank, ", found ",
             rank);
  d.table = loader.mapped_table(ffn + "s_emb.weight", c.n_vocab, rank * rank);
  d.base = loader.matrix(ffn + "s_emb_x.weight", rank * rank, c.n_embd, format);
  d.s1 = loader.matrix(ffn + "s1", rank, c.n_embd, format, true);
  d.s2 = loader.matrix(ffn + "s2", c.n_ffn, rank, format, true);
  d.s0 = loader.vector(ffn + "s0", {c.n_ffn});
  d.no_mu = loader.zeros(c.n_embd);
  return d;
}

}  // namespace

std::vector<StatePart> Layer::state_parts(const Config& c) {
  return {{"att.shift", {c.n_embd}}, {"att.wkv", {c.n_head, c.head_size, c.head_size}}, {"ffn.shift", {c.n_embd}}};
}

Layer Layer::load(Loader& loader, const Config& c, int index, Formats formats) {
  const std::string block = join("blocks.", index, "."), att = block + "att.", ffn = block + "ffn.";
  const auto vector = [&](const std::string& name) { return loader.vector(name, {c.n_embd}); };
  const auto square = [&](const char* name) { return loader.matrix(att + name, c.n_embd, c.n_embd, formats.large); };
  // Low-rank pairs are stored (in, out).
  const auto rank_in = [&](const char* name) {
    return loader.matrix(att + name, int(loader.dimension(att + name, 1)), c.n_embd, formats.small, true);
  };
  const auto rank_out = [&](const char* name, const Linear& in) {
    return loader.matrix(att + name, c.n_embd, in.rows, formats.small, true);
  };

  Layer layer;
  TimeMix& t = layer.time_mix;
  t.norm = loader.norm(block + "ln1", c.n_embd, 1e-5f);
  t.mu_r = vector(att + "x_r"), t.mu_w = vector(att + "x_w"), t.mu_k = vector(att + "x_k");
  t.mu_v = vector(att + "x_v"), t.mu_a = vector(att + "x_a"), t.mu_g = vector(att + "x_g");
  t.receptance = square("receptance.weight"), t.key = square("key.weight"), t.value = square("value.weight");
  t.w1 = rank_in("w1"), t.a1 = rank_in("a1"), t.g1 = rank_in("g1");
  if (index > 0) t.v1 = rank_in("v1");
  t.w2 = rank_out("w2", t.w1), t.a2 = rank_out("a2", t.a1), t.g2 = rank_out("g2", t.g1);
  if (index > 0) t.v2 = rank_out("v2", t.v1);
  t.output = square("output.weight");
  t.w0 = vector(att + "w0"), t.a0 = vector(att + "a0");
  t.k_k = vector(att + "k_k"), t.k_a = vector(att + "k_a"), t.r_k = loader.vector(att + "r_k", {c.n_head, c.head_size});
  t.out = loader.norm(att + "ln_x", c.n_embd, 64e-5f);
  if (index > 0) {
    t.v0 = vector(att + "v0");
  } else {  // some files carry them, nothing uses them
    for (const char* name : {"v0", "v1", "v2"}) loader.skip(att + name);
  }

  ChannelMix& f = layer.channel_mix;
  f.norm = loader.norm(block + "ln2", c.n_embd, 1e-5f);
  f.mu = vector(ffn + "x_k");
  f.key = loader.matrix(ffn + "key.weight", c.n_ffn, c.n_embd, formats.large);
  f.value = loader.matrix_of_sparse(ffn + "value.weight", c.n_embd, c.n_ffn, formats.large);
  if (c.version == "7a") f.deep = load_deep_embedding(loader, c, ffn, formats.small);
  return layer;
}

Scratch::Scratch(Arena& arena, const Backend& backend, const Config& config, const std::vector<Layer>& layers,
                 int rows) {
  const Carver carve{arena, backend, rows};
  const int c = config.n_embd, f = config.n_ffn;
  // Ranks may differ from layer to layer: each buffer is as wide as the widest, and a product uses what it needs.
  int rank_of_w = 0, rank_of_a = 0, rank_of_g = 0, rank_of_v = 0;
  for (const Layer& layer : layers) {
    const TimeMix& t = layer.time_mix;
    rank_of_w = std::max(rank_of_w, t.w1.rows), rank_of_a = std::max(rank_of_a, t.a1.rows);
    rank_of_g = std::max(rank_of_g, t.g1.rows), rank_of_v = std::max(rank_of_v, t.v1.rows);
  }
  for (Tensor* t : {&r, &w, &k, &v, &a, &g, &v_mix, &v_first, &partial}) *t = carve.tensor(c);
  for (Operand* o : {&mixed_r, &mixed_w, &mixed_k, &mixed_v, &mixed_a, &mixed_g, &narrow_v, &y}) *o = carve.operand(c);
  low_w = carve.tensor(rank_of_w), rank_w = carve.operand(rank_of_w);
  low_a = carve.tensor(rank_of_a), rank_a = carve.operand(rank_of_a);
  low_g = carve.tensor(rank_of_g), rank_g = carve.operand(rank_of_g);
  low_v = carve.tensor(rank_of_v), rank_v = carve.operand(rank_of_v);
  hidden = carve.tensor(f), key = carve.operand(f);

  int rank = 0;
  for (const Layer& layer : layers) rank = std::max(rank, layer.channel_mix.deep.s1.rows);
  if (rank == 0) return;
  z = carve.tensor(rank), base = carve.tensor(rank * rank), gate = carve.tensor(f);
  embedded = carve.operand(c), unmixed = carve.operand(c), products = carve.operand(rank);
}

void Scratch::set_formats(Formats formats) {
  for (Operand* o : {&mixed_r, &mixed_k, &mixed_v, &y, &key}) o->format = formats.large;
  for (Operand* o :
       {&mixed_w, &mixed_a, &mixed_g, &narrow_v, &rank_w, &rank_a, &rank_g, &rank_v, &embedded, &unmixed, &products})
    o->format = formats.small;
}

void time_mix(Verbs& b, const Layer& layer, const Config& config, size_t shift, StatePlace wkv, const Batch& batch,
              Scratch& s, const Tensor& x) {
  const TimeMix& p = layer.time_mix;
  const bool first = !p.v1;
  const bool twice = !first && s.narrow_v.format != s.mixed_v.format;  // x_v goes to a large matrix and to a small one
  const MixJob mixes[] = {{p.mu_r, s.mixed_r}, {p.mu_w, s.mixed_w}, {p.mu_k, s.mixed_k}, {p.mu_v, s.mixed_v},
                          {p.mu_a, s.mixed_a}, {p.mu_g, s.mixed_g}, {p.mu_v, s.narrow_v}};
  s.rank_w.cols = p.w1.rows, s.rank_a.cols = p.a1.rows, s.rank_g.cols = p.g1.rows, s.rank_v.cols = p.v1.rows;
  const LinearJob in[] = {{s.mixed_r, p.receptance, s.r},
                          {s.mixed_k, p.key, s.k},
                          {s.mixed_v, p.value, s.v},
                          {s.mixed_w, p.w1, s.low_w, Act::tanh, s.rank_w},
                          {s.mixed_a, p.a1, s.low_a, Act::none, s.rank_a},
                          {s.mixed_g, p.g1, s.low_g, Act::sigmoid, s.rank_g},
                          {twice ? s.narrow_v : s.mixed_v, p.v1, s.low_v, Act::none, s.rank_v}};
  b.mix_linear(x, p.norm, std::span(mixes).first(twice ? 7 : 6), shift, batch, std::span(in).first(first ? 6 : 7));

  const LinearJob out[] = {
      {s.rank_w, p.w2, s.w}, {s.rank_a, p.a2, s.a}, {s.rank_g, p.g2, s.g}, {s.rank_v, p.v2, s.v_mix}};
  b.linear_wkv7(std::span(out).first(first ? 3 : 4),
                {s.r, s.w, s.k, s.v, s.a, s.g, first ? Tensor{} : s.v_mix, s.v_first, p.w0, p.a0, p.v0, p.k_k, p.k_a,
                 p.r_k, p.out, config.n_head, config.head_size},
                wkv, batch, s.y);

  // What RWKV-7a makes of the embedding waits for nothing, and here it costs no region.
  const Linear& base = layer.channel_mix.deep.base;
  const LinearJob last[] = {{s.y, p.output, s.partial, Act::none, {}, x}, {s.embedded, base, s.base}};
  b.linear(std::span(last).first(base ? 2 : 1));
}

void channel_mix(Verbs& b, const ChannelMix& p, size_t shift, const Batch& batch, Scratch& s, const Tensor& x) {
  if (const DeepEmbedding& d = p.deep; d.table) {
    const MixJob mixes[] = {{p.mu, s.mixed_k}, {d.no_mu, s.unmixed}};
    // Ranks may differ from layer to layer.
    Tensor z = s.z, base = s.base;
    z.cols = d.s1.rows, base.cols = d.base.rows, s.products.cols = d.s1.rows;
    const LinearJob in[] = {{s.mixed_k, p.key, s.hidden, Act::relu2}, {s.unmixed, d.s1, z}};
    b.mix_linear(x, p.norm, mixes, shift, batch, in);
    b.deep_embed({d.table, base, z}, batch, s.products);
    const LinearJob out[] = {{s.products, d.s2, s.gate, Act::none, s.key, {}, s.hidden, d.s0}};
    b.linear(out);
  } else {
    const MixJob mixes[] = {{p.mu, s.mixed_k}};
    const LinearJob key[] = {{s.mixed_k, p.key, s.hidden, Act::relu2, s.key}};
    b.mix_linear(x, p.norm, mixes, shift, batch, key);
  }
  const LinearJob residual[] = {{s.key, p.value, s.partial, Act::none, {}, x}};
  b.linear(residual);
}

}  // namespace rwkv::v7
