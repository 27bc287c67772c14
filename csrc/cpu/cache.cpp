// The paged cache: page size and copies of whole pages. Appending is part of stage 1, reading of stage 2.
#include <cstring>

#include "checks.h"
#include "kernels/table.h"

namespace codegen_fast::cpu {

int64_t kv_page_size() { return kPage; }

void copy_pages(KVCache& cache, const TensorView& source, const TensorView& destination) {
  check_copy_pages(kRules, cache, source, destination);
  const int64_t bytes = cache.pages.shape[1] * cache.pages.shape[2] * dtype_bytes(cache.pages.dtype);
  const int64_t pages = cache.pages.shape[0];
  for (int64_t i = 0; i < source.shape[0]; ++i) {
    for (const TensorView* t : {&source, &destination}) {
      const int32_t id = t->as<int32_t>()[i];
      if (id < 0 || id >= pages)
        throw ValueError(std::string(t->name) + ": page " + std::to_string(id) + " is not one of the cache's " +
                         std::to_string(pages));
    }
    if (source.as<int32_t>()[i] == destination.as<int32_t>()[i])
      throw ValueError("destination: page " + std::to_string(source.as<int32_t>()[i]) + " is its own source");
  }
  for (int64_t i = 0; i < source.shape[0]; ++i)
    std::memcpy(cache.pages.as<char>() + destination.as<int32_t>()[i] * bytes,
                cache.pages.as<char>() + source.as<int32_t>()[i] * bytes, bytes);
}

}  // namespace codegen_fast::cpu
