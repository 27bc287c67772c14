// The paged cache: page size and copies of whole pages. Appending is part of stage 1, reading of stage 2.
#include "checks.h"
#include "launch.h"

#include "intrinsics.h"

namespace codegen_fast::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // 16-byte loads that a thread has on their way
constexpr int kPiece = kThreads * kLoads * 16;

struct CopyPagesParams {
  char* pages;
  int64_t page_bytes;  // a multiple of 16
  int64_t num_pages;
  const int32_t* source;
  const int32_t* destination;
};

// Block (i, j) copies piece j of page source[i].
__global__ void __launch_bounds__(kThreads) copy_pages_kernel(CopyPagesParams p) {
  dependency_launch();
  dependency_wait();
  const int64_t from = p.source[blockIdx.x], to = p.destination[blockIdx.x];
  if (from < 0 || from >= p.num_pages || to < 0 || to >= p.num_pages) return;
  const char* in = p.pages + from * p.page_bytes;
  char* out = p.pages + to * p.page_bytes;
  const int64_t first = int64_t{blockIdx.y} * kPiece + threadIdx.x * 16;
  Bytes16 v[kLoads];
  for (int i = 0; i < kLoads; ++i)
    if (first + i * kThreads * 16 < p.page_bytes) v[i] = load16(in + first + i * kThreads * 16);
  for (int i = 0; i < kLoads; ++i)
    if (first + i * kThreads * 16 < p.page_bytes) store16(out + first + i * kThreads * 16, v[i]);
}

}  // namespace

int64_t kv_page_size() { return kPage; }

void copy_pages(KVCache& cache, const TensorView& source, const TensorView& destination) {
  // check
  check_copy_pages(kRules, cache, source, destination);
  const int64_t page_bytes = cache.pages.shape[1] * cache.pages.shape[2] * dtype_bytes(cache.pages.dtype);
  if (source.numel() == 0 || page_bytes == 0) return;

  // launch
  const CopyPagesParams params{cache.pages.as<char>(), page_bytes, cache.pages.shape[0], source.as<int32_t>(),
                               destination.as<int32_t>()};
  const dim3 blocks(to_int(source.shape[0], "source"), to_int(ceil_div<int64_t>(page_bytes, kPiece), "pages"));
  launch("copy_pages", copy_pages_kernel, Grid{blocks, kThreads}, params);
}

}  // namespace codegen_fast::cuda
