// Products on the pool: how a region's matrices are shared out, and when the columns of zero inputs are skipped.
#include <algorithm>

#include "cpu/backend.h"
#include "cpu/columns.h"

namespace rwkv::cpu {

namespace {

constexpr int64_t kPieceBytes = 32 << 10;  // of weights that a thread takes at a time

// The share of live columns up to which reading them alone is faster than reading all panels, as measured. It depends
// on the bytes of a column that a worker reads at a stretch.
double most_live(size_t bytes) { return bytes < 512 ? 0.3 : bytes < 2048 ? 0.4 : 0.65; }

Product product_of(const LinearJob& job, float* room) {
  return {job.w.data,
          job.w.format,
          padded_k(job.w.format, job.w.cols),
          job.x.data,
          job.x.rows,
          job.y.as<float>(),
          size_t(job.y.stride),
          job.act,
          job.out.data,
          job.out.format,
          padded_k(job.out.format, job.out.cols),
          job.out.cols,
          job.sum.as<float>(),
          size_t(job.sum.stride),
          job.gate.as<float>(),
          size_t(job.gate.stride),
          job.bias.as<float>(),
          room};
}

}  // namespace

void CpuBackend::linear(std::span<const LinearJob> jobs) {
  if (!jobs.empty() && skip_zeros(jobs[0])) jobs = jobs.subspan(1);
  if (jobs.empty()) return;
  // Few tokens take the time of their weights' bytes, which differs from thread to thread: pieces that may change
  // hands. Many take that of their multiplications, which differs from format to format: a share for every worker.
  const bool few = std::ranges::all_of(jobs, [&](const LinearJob& job) { return job.x.rows <= kernels_.tile; });
  const auto work_of = [&](const LinearJob& job) {  // of a panel
    const int k = padded_k(job.w.format, job.w.cols);
    if (!job.w) return int64_t(job.x.rows) * kPanel * int64_t(sizeof(float));
    if (few) return int64_t(panel_bytes(job.w.format, k));
    const int number = job.x.format == Format::f32 ? kernels_.float_work : kernels_.pair_work;
    return int64_t(k) * job.x.rows * (job.x.format == Format::i8 ? 4 : number);
  };
  const auto cut = [&](const LinearJob& job) {  // panels of a piece
    const int unit = job.out && job.out.format == Format::i8 ? kGroup / kPanel : 1;
    return few ? unit * int(std::max<int64_t>(1, kPieceBytes / (work_of(job) * unit))) : unit;
  };
  int64_t total = 0;
  for (const LinearJob& job : jobs) total += panels_of(job.w.rows) * work_of(job);
  int worker = 0, given = 0, first = 0;
  int64_t at = 0;
  for (const LinearJob& job : jobs) {
    const int panels = panels_of(job.w.rows), size = cut(job), pieces = (panels + size - 1) / size;
    const int64_t work = work_of(job);
    for (; worker < pool_.size() - 1; worker++) {
      const int64_t end = total * (worker + 1) / pool_.size() - at;
      if (end > panels * work) break;
      const int to = first + int(std::max<int64_t>(0, (end + size * work - 1) / (size * work)));
      pieces_.give(worker, {given, to});
      given = to;
    }
    first += pieces;
    at += panels * work;
  }
  for (; worker < pool_.size(); worker++) pieces_.give(worker, {given, first}), given = first;

  const auto work = [&](int worker, Pieces::Range range) {
    int at = 0;
    for (const LinearJob& job : jobs) {
      const int panels = panels_of(job.w.rows), size = cut(job), pieces = (panels + size - 1) / size;
      const int p0 = std::clamp(range.begin - at, 0, pieces) * size, p1 = std::clamp(range.end - at, 0, pieces) * size;
      at += pieces;
      if (p0 < p1) kernels_.product(product_of(job, room(worker)), p0, std::min(p1, panels));
    }
  };
  pool_.run([&](int worker) {
    if (!few) return work(worker, pieces_.all(worker));
    while (const Pieces::Range range = pieces_.take(worker)) work(worker, range);
  });
}

// One token, a residual: everybody takes some rows of all live columns.
bool CpuBackend::skip_zeros(const LinearJob& job) {
  if (!job.w.columns || job.x.rows != 1 || !job.sum || !may_skip(job.w.columns)) return false;
  const int k = padded_k(job.w.format, job.w.cols), panels = panels_of(job.w.rows);
  const size_t stretch =
      cpu::column_bytes(job.w.format, column_rows(job.w.rows), kGroup) / kGroup / size_t(pool_.size());
  const int most = sparse_ ? k : int(k * most_live(stretch));
  const int count = kernels_.live_columns(job.w.format, job.x.data, k, most, live_.data());
  if (count < 0) return false;
  const LiveColumns columns{job.w.columns, job.w.rows, live_.data(), count};
  pool_.run([&](int worker) {
    const Share share((panels + 1) / 2, worker, pool_.size());
    if (share.begin == share.end) return;
    kernels_.column_product(product_of(job, room(worker)), columns, 2 * share.begin, std::min(2 * share.end, panels));
  });
  return true;
}

}  // namespace rwkv::cpu
