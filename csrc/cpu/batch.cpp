#include "batch.h"

namespace codegen_fast::cpu {

void check_contents(const Batch& batch, const KVCache& cache) {
  const int64_t seqs = batch.num_seqs();
  const int32_t* start = batch.query_start.as<int32_t>();
  const int32_t* lens = batch.seq_lens.as<int32_t>();
  if (start[0] != 0) throw ValueError("query_start: expected to begin with 0, got " + std::to_string(start[0]));
  for (int64_t b = 0; b < seqs; ++b) {
    const int64_t fresh = int64_t{start[b + 1]} - start[b], pages = (int64_t{lens[b]} + kPage - 1) / kPage;
    if (fresh < 0) throw ValueError("query_start: expected values that never fall, got " + std::to_string(start[b]) +
                                    " before " + std::to_string(start[b + 1]));
    if (lens[b] < fresh || lens[b] > batch.max_seq_len)
      throw ValueError("seq_lens: sequence " + std::to_string(b) + " has length " + std::to_string(lens[b]) +
                       ", expected " + std::to_string(fresh) + " (its new tokens) to " +
                       std::to_string(batch.max_seq_len) + " (max_seq_len)");
    if (pages > batch.page_table.shape[1])
      throw ValueError("page_table: sequence " + std::to_string(b) + " of length " + std::to_string(lens[b]) +
                       " needs " + std::to_string(pages) + " pages, the table has " +
                       std::to_string(batch.page_table.shape[1]));
    const int32_t* ids = pages_of(batch, b);
    for (int64_t p = 0; p < pages; ++p)
      if (ids[p] < 0 || ids[p] >= cache.pages.shape[0])
        throw ValueError("page_table: sequence " + std::to_string(b) + " names page " + std::to_string(ids[p]) +
                         ", the cache has " + std::to_string(cache.pages.shape[0]));
  }
  const int64_t total = start[seqs];
  if (total != batch.num_tokens)
    throw ValueError("num_tokens: expected " + std::to_string(total) + " (the end of query_start), got " +
                     std::to_string(batch.num_tokens));
}

void fill_places(const Batch& batch, TokenPlace* places) {
  const int32_t* start = batch.query_start.as<int32_t>();
  const int32_t* lens = batch.seq_lens.as<int32_t>();
  for (int32_t b = 0; b < batch.num_seqs(); ++b)
    for (int32_t t = start[b]; t < start[b + 1]; ++t) places[t] = {b, lens[b] - start[b + 1] + t};
}

}  // namespace codegen_fast::cpu
