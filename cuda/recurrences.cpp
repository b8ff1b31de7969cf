#include <algorithm>

#include "cuda/backend.h"

namespace rwkv::cuda {

// The lists of a step's chunks, behind its batch. Only its own length says how a sequence is computed.
void CudaBackend::place_chunks(const Batch& batch, Carving& lists) {
  passes_.clear();
  shorts_ = 0;
  const int rows = int(batch.token.size()), sequences = int(batch.src.size());
  if (most_chunks_ == 0 || rows < kChunkFrom) return;
  const Wkv7Run* run = nullptr;
  const Wkv7Chunk* chunk = nullptr;
  Wkv7Run* runs = lists.place(size_t(rows / kChunkFrom), run);
  Wkv7Chunk* chunks = lists.place(size_t(most_chunks(rows)), chunk);
  int32_t* others = lists.place(size_t(sequences), short_);
  for (int s = 0; s < sequences; s++) {
    const int begin = batch.start[size_t(s)], end = batch.start[size_t(s) + 1],
              count = blocks_of(end - begin, kWkvChunk);
    if (end - begin < kChunkFrom) {
      others[shorts_++] = s;
      continue;
    }
    if (passes_.empty() || passes_.back().chunks + count > most_chunks_) passes_.push_back({run, chunk, 0, 0});
    Pass& pass = passes_.back();
    *runs++ = {s, pass.chunks, count};
    for (int row = begin; row < end; row += kWkvChunk) *chunks++ = {row, std::min(kWkvChunk, end - row)};
    pass.runs++, pass.chunks += count;
    run++, chunk += count;
  }
}

void CudaBackend::wkv4(const Wkv4& w, const Batch& batch, Operand y) {
  Wkv4Params p = {.r = w.r.as<float>(),
                  .k = w.k.as<float>(),
                  .v = w.v.as<float>(),
                  .ld = int32_t(w.k.stride),
                  .cols = int32_t(w.k.cols),
                  .decay = w.decay.as<float>(),
                  .bonus = w.bonus.as<float>(),
                  .a = w.a,
                  .b = w.b,
                  .m = w.m,
                  .y = pointer(y),
                  .step = step_};
  const int threads = int(kKernels[size_t(Kernel::wkv4)].threads);
  launch(Kernel::wkv4, {blocks_of(round_up(p.cols, kPad), threads), int(batch.src.size()), 1}, &p);
}

Wkv6Params CudaBackend::wkv6_params(const Wkv6& w, StatePlace state, const Operand& y) const {
  return {.r = w.r.as<float>(),
          .k = w.k.as<float>(),
          .v = w.v.as<float>(),
          .g = w.g.as<float>(),
          .w = w.w.as<float>(),
          .ld = int32_t(w.k.stride),
          .heads = w.heads,
          .n = w.head_size,
          .decay = w.decay.as<float>(),
          .bonus = w.bonus.as<float>(),
          .out = pointers(w.out),
          .state = state.at,
          .y = pointer(y),
          .step = step_};
}

void CudaBackend::wkv6(const Wkv6& w, StatePlace state, const Batch& batch, Operand y) {
  Wkv6Params p = wkv6_params(w, state, y);
  const bool halves = state.dtype == DType::f16;
  const Kernel kernel = w.head_size == 64 ? halves ? Kernel::wkv6_64_state16 : Kernel::wkv6_64
                        : halves          ? Kernel::wkv6_state16
                                          : Kernel::wkv6;
  launch(kernel, {w.heads, int(batch.src.size()), 1}, &p);
}

Wkv7Params CudaBackend::wkv7_params(const Wkv7& w, StatePlace state, const Operand& y) const {
  return {.r = w.r.as<float>(),
          .w = w.w.as<float>(),
          .k = w.k.as<float>(),
          .v = w.v.as<float>(),
          .a = w.a.as<float>(),
          .g = w.g.as<float>(),
          .v_mix = w.v_mix.as<float>(),
          .v_first = w.v_first.as<float>(),
          .ld = int32_t(w.k.stride),
          .heads = w.heads,
          .n = w.head_size,
          .w0 = w.w0.as<float>(),
          .a0 = w.a0.as<float>(),
          .v0 = w.v0.as<float>(),
          .k_k = w.k_k.as<float>(),
          .k_a = w.k_a.as<float>(),
          .r_k = w.r_k.as<float>(),
          .out = pointers(w.out),
          .state = state.at,
          .y = pointer(y),
          .step = step_};
}

void CudaBackend::wkv7(const Wkv7& w, StatePlace state, const Batch& batch, Operand y) {
  Wkv7Params p = wkv7_params(w, state, y);
  const bool halves = state.dtype == DType::f16;
  const Kernel serial = w.head_size == 64 ? halves ? Kernel::wkv7_64_state16 : Kernel::wkv7_64
                        : halves          ? Kernel::wkv7_state16
                                          : Kernel::wkv7;
  if (passes_.empty() || w.head_size != kWkvChunk || y.format == Format::f32)
    return launch(serial, {w.heads, int(batch.src.size()), 1}, &p);
  if (shorts_ > 0) {
    Wkv7Params some = p;
    some.sequences = short_;
    launch(serial, {w.heads, shorts_, 1}, &some);
  }
  for (const Pass& pass : passes_) {
    Wkv7ChunkParams c = {.wkv = p,
                         .chunk = pass.chunk,
                         .run = pass.run,
                         .piece = reinterpret_cast<Wkv7Piece*>(pieces_of_chunks_.data.get())};
    launch(Kernel::wkv7_chunk, {w.heads, pass.chunks, 1}, &c);
    launch(halves ? Kernel::wkv7_carry_state16 : Kernel::wkv7_carry, {w.heads, pass.runs, 2}, &c);
    launch(Kernel::wkv7_chunk_out, {w.heads, pass.chunks, 1}, &c);
  }
}

// One launch where every row is a sequence. Low-rank matrices are never quantised.
bool CudaBackend::takes_ranks(std::span<const LinearJob> jobs, int head_size) const {
  const Format format = jobs.front().w.format;
  const auto cannot = [&](const LinearJob& job) { return job.w.format != format || job.w.mostly_zero_inputs; };
  return features_.ranks && step_.tokens == step_.sequences && step_.sequences <= kMostTokens && head_size == 64 &&
         !quantised(stored(format)) && std::ranges::none_of(jobs, cannot);
}

template <class Params>
void CudaBackend::launch_decode(Kernel first, std::span<const LinearJob> jobs, StatePlace state, Params p) {
  const int sequences = step_.sequences;
  p.group = decode_group(sequences, p.wkv.heads, context_->info().processors);
  for (size_t i = 0; i < jobs.size(); i++) p.job[i] = params_of(jobs[i], false);
  const Kernel kernel = decode_kernel(first, stored(jobs.front().w.format), state.dtype == DType::f16);
  launch(kernel, {p.wkv.heads, blocks_of(sequences, p.group), 1}, &p);
}

void CudaBackend::linear_wkv6(const LinearJob& job, const Wkv6& w, StatePlace state, const Batch& batch, Operand y) {
  if (!takes_ranks({&job, 1}, w.head_size)) return Backend::linear_wkv6(job, w, state, batch, y);
  launch_decode(Kernel::wkv6_decode_f32, {&job, 1}, state, Wkv6DecodeParams{wkv6_params(w, state, y), 0, 0, {}});
}

void CudaBackend::linear_wkv7(std::span<const LinearJob> jobs, const Wkv7& w, StatePlace state, const Batch& batch,
                              Operand y) {
  if (!takes_ranks(jobs, w.head_size)) return Backend::linear_wkv7(jobs, w, state, batch, y);
  launch_decode(Kernel::wkv7_decode_f32, jobs, state, Wkv7DecodeParams{wkv7_params(w, state, y), 0, 0, {}});
}

}  // namespace rwkv::cuda
