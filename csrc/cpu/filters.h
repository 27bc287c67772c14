// A row's candidates for its next token, and the filters that drop some of them.
#pragma once

#include <cstdint>

namespace codegen_fast::cpu {

class Candidates {
 public:
  static int64_t scratch_bytes(int64_t vocab_size);
  // All tokens of a row. largest: its largest logit, finite; temperature: above 0; scratch: used as long as this.
  Candidates(const float* logits, int64_t vocab_size, float largest, float temperature, char* scratch);

  // sample in csrc/ops.h says which tokens stay; at_least is min_tokens_to_keep.
  void keep_top_k(int64_t k);
  void keep_top_p(float top_p, int64_t at_least);
  void keep_min_p(float min_p, int64_t at_least);
  void keep_typical(float typical_p, int64_t at_least);
  void keep_epsilon(float epsilon, int64_t at_least);
  void keep_eta(float eta, int64_t at_least);

  // The first token, in order of ids, at which the running mass exceeds u times the mass of all.
  int64_t draw(double u) const;

  int64_t count() const { return count_; }
  const int32_t* ids() const { return ids_; }  // (count,) rising

 private:
  struct Cut;

  double mass() const;
  double mean_z(double mass) const;
  Cut cut(const float* of, double wanted, int64_t at_least) const;
  int64_t count_from(const float* of, float bound) const;
  void keep_from(const float* of, float bound);
  void keep_probable(double bound, int64_t at_least);
  template <class Keep> void keep_if(Keep keep);

  const float* logits_;
  float largest_, temperature_;
  int64_t count_;
  // What is left of the row, dense.
  int32_t* ids_;
  float* z_;  // (logit - largest) / temperature: never positive
  float* p_;  // exp(z): not normalised
  // Scratch of the filters.
  float* values_;     // (vocab_size,)
  int32_t* members_;  // (vocab_size,)
  double* masses_;    // (kBuckets,)
  int32_t* counts_;   // (kBuckets,)
};

}  // namespace codegen_fast::cpu
