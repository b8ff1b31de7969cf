#include "model/channel_mix.h"

#include "core/error.h"

namespace rwkv {

ChannelMixScratch::ChannelMixScratch(const Carver& carve, const Config& c)
    : hidden(carve.tensor(c.n_ffn)),
      gate(carve.tensor(c.n_embd)),
      partial(carve.tensor(c.n_embd)),
      mixed_k(carve.operand(c.n_embd)),
      mixed_r(carve.operand(c.n_embd)),
      key(carve.operand(c.n_ffn)) {}

void ChannelMixScratch::set_format(Format format) {
  for (Operand* o : {&mixed_k, &mixed_r, &key}) o->format = format;
}

Tensor load_mu(Loader& loader, const Config& c, const std::string& part, char q) {
  if (c.version == "6") return loader.vector(part + "time_maa_" + q, {c.n_embd});
  return loader.vector(part + "time_mix_" + q, {c.n_embd}, [](float x) { return 1 - x; });
}

ChannelMix load_channel_mix(Loader& loader, const Config& c, int index, Format format) {
  const std::string block = join("blocks.", index, "."), ffn = block + "ffn.";
  ChannelMix p;
  p.norm = loader.norm(block + "ln2", c.n_embd, 1e-5f);
  p.mu_k = load_mu(loader, c, ffn, 'k'), p.mu_r = load_mu(loader, c, ffn, 'r');
  p.key = loader.matrix(ffn + "key.weight", c.n_ffn, c.n_embd, format);
  p.value = loader.matrix_of_sparse(ffn + "value.weight", c.n_embd, c.n_ffn, format);
  p.receptance = loader.matrix(ffn + "receptance.weight", c.n_embd, c.n_embd, format);
  return p;
}

void channel_mix(Verbs& b, const ChannelMix& p, size_t shift, const Batch& batch, ChannelMixScratch& s,
                 const Tensor& x) {
  const MixJob mixes[] = {{p.mu_k, s.mixed_k}, {p.mu_r, s.mixed_r}};
  const LinearJob in[] = {{s.mixed_k, p.key, s.hidden, Act::relu2, s.key},
                          {s.mixed_r, p.receptance, s.gate, Act::sigmoid}};
  b.mix_linear(x, p.norm, mixes, shift, batch, in);
  const LinearJob residual[] = {{s.key, p.value, s.partial, Act::none, {}, x, s.gate}};
  b.linear(residual);
}

}  // namespace rwkv
