// Nothing is sorted: sorting 51200 logits would cost a third of a small model's step. Thresholds are found in
// histograms, and what a filter has dropped the next one does not see.
#include "filters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "dispatch.h"
#include "layout.h"

namespace codegen_fast::cpu {
namespace {

// A float without its sign is ordered as its bits are, which a search takes 13, 13 and 5 at a time.
constexpr int kBuckets = 8192;
constexpr int kShifts[] = {18, 5, 0};

uint32_t magnitude_bits(float value) {
  uint32_t u;
  std::memcpy(&u, &value, 4);
  return u & 0x7fffffff;
}

// Sums in double of eight interleaved parts, so that they do not wait for each other; added up in a fixed order.
template <class Term>
double sum(int64_t begin, int64_t end, Term term) {
  double parts[8] = {};
  int64_t i = begin;
  for (; i + 8 <= end; i += 8)
    for (int j = 0; j < 8; ++j) parts[j] += term(i + j);
  for (int j = 0; i < end; ++i, ++j) parts[j] += term(i);
  return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// The smallest float that is not below the bound.
float rounded_up(double bound) {
  const float f = static_cast<float>(bound);
  return f < bound ? std::nextafter(f, INFINITY) : f;
}

}  // namespace

int64_t Candidates::scratch_bytes(int64_t vocab_size) {
  return 5 * round_up(vocab_size * 4, 64) + kBuckets * (sizeof(double) + sizeof(int32_t));
}

Candidates::Candidates(const float* logits, int64_t vocab_size, float largest, float temperature, char* scratch)
    : logits_(logits), largest_(largest), temperature_(temperature), count_(vocab_size) {
  const int64_t row = round_up(vocab_size * 4, 64);
  ids_ = reinterpret_cast<int32_t*>(scratch);
  z_ = reinterpret_cast<float*>(scratch + row);
  p_ = reinterpret_cast<float*>(scratch + 2 * row);
  values_ = reinterpret_cast<float*>(scratch + 3 * row);
  members_ = reinterpret_cast<int32_t*>(scratch + 4 * row);
  masses_ = reinterpret_cast<double*>(scratch + 5 * row);
  counts_ = reinterpret_cast<int32_t*>(scratch + 5 * row + kBuckets * sizeof(double));
  for (int64_t i = 0; i < count_; ++i) ids_[i] = static_cast<int32_t>(i);
  for (int64_t i = 0; i < count_; ++i) z_[i] = (logits[i] - largest) / temperature;
  kernels().exponentials(p_, z_, count_);
}

double Candidates::mass() const {
  return sum(0, count_, [this](int64_t i) { return static_cast<double>(p_[i]); });
}

// The mean of z: log(mass) - the entropy.
double Candidates::mean_z(double mass) const {
  return sum(0, count_, [this](int64_t i) {
           const float z = p_[i] > 0.0f ? z_[i] : 0.0f;  // not minus infinity
           return static_cast<double>(p_[i]) * z;
         }) / mass;
}

// Keeps the candidates for which of[i], one of the arrays here, is at least the bound.
void Candidates::keep_from(const float* of, float bound) {
  count_ = kernels().keep_from(ids_, z_, p_, of, bound, count_);
}

int64_t Candidates::count_from(const float* of, float bound) const {
  int32_t n = 0;
  for (int64_t i = 0; i < count_; ++i) n += of[i] >= bound;
  return n;
}

template <class Keep>
void Candidates::keep_if(Keep keep) {
  int64_t n = 0;
  for (int64_t i = 0; i < count_; ++i) {
    const bool stays = keep(i);
    ids_[n] = ids_[i];
    z_[n] = z_[i];
    p_[n] = p_[i];
    n += stays;
  }
  count_ = n;
}

// Equals of the k-th stay.
void Candidates::keep_top_k(int64_t k) {
  if (k >= count_) return;
  // At least k candidates are at or above the k-th largest of so many maxima, and few are where it matters.
  const int64_t parts = count_ / std::clamp<int64_t>(count_ / (k + k / 4), 1, 64);
  std::copy_n(z_, parts, values_);
  for (int64_t first = parts; first < count_; first += parts)
    for (int64_t i = 0, n = std::min(parts, count_ - first); i < n; ++i)
      values_[i] = z_[first + i] > values_[i] ? z_[first + i] : values_[i];
  std::nth_element(values_, values_ + k - 1, values_ + parts, std::greater<float>());
  keep_from(z_, values_[k - 1]);
  // Decided on the logits: z may have rounded two that differ to the same value.
  for (int64_t i = 0; i < count_; ++i) values_[i] = logits_[ids_[i]];
  std::nth_element(values_, values_ + k - 1, values_ + count_, std::greater<float>());
  const float kth = values_[k - 1];
  keep_if([&](int64_t i) { return logits_[ids_[i]] >= kth; });
}

// Where candidates end that are taken from the smallest |of[i]| up, equals in order of ids, as long as those before
// have less than the wanted mass or are fewer than at_least.
struct Candidates::Cut {
  float magnitude;  // the largest that is taken
  int64_t last;     // the last candidate of that magnitude that is taken
  bool splits;      // there are equals of it that are not
};

Candidates::Cut Candidates::cut(const float* of, double wanted, int64_t at_least) const {
  double before = 0.0;
  int64_t taken = 0;
  auto more = [&](double mass, int64_t number) { return mass < wanted || number < at_least; };

  int64_t n = count_;
  for (const int shift : kShifts) {
    const bool all = shift == kShifts[0];
    auto member = [&](int64_t m) -> int64_t { return all ? m : members_[m]; };
    auto bucket_of = [&](int64_t i) { return magnitude_bits(of[i]) >> shift & (kBuckets - 1); };
    std::memset(masses_, 0, kBuckets * sizeof(double));
    std::memset(counts_, 0, kBuckets * sizeof(int32_t));
    for (int64_t m = 0; m < n; ++m) {
      const int64_t i = member(m);
      masses_[bucket_of(i)] += p_[i];
      ++counts_[bucket_of(i)];
    }
    // The bucket in which it ends; the last that has any where rounding keeps the sum below the wanted mass.
    uint32_t bucket = 0;
    for (int64_t left = n - counts_[0]; left > 0 && more(before + masses_[bucket], taken + counts_[bucket]);) {
      before += masses_[bucket];
      taken += counts_[bucket];
      left -= counts_[++bucket];
    }
    int64_t size = 0;
    for (int64_t m = 0; m < n; ++m) {
      const int64_t i = member(m);
      members_[size] = static_cast<int32_t>(i);
      size += bucket_of(i) == bucket;
    }
    n = size;
  }
  int64_t end = 0;
  while (end < n && more(before, taken)) {
    before += p_[members_[end++]];
    ++taken;
  }
  return {std::fabs(of[members_[0]]), members_[end - 1], end < n};
}

// Of equals the lower ids stay.
void Candidates::keep_top_p(float top_p, int64_t at_least) {
  const double all = mass();
  // Tokens less probable than this have together less than half of the mass that may go: they all go, at little cost.
  const float negligible = static_cast<float>(0.5 * (1.0 - top_p) * all / static_cast<double>(count_));
  if (count_from(p_, negligible) >= at_least) keep_from(p_, negligible);
  const Cut end = cut(z_, top_p * all, at_least);
  const int32_t last_id = ids_[end.last];
  keep_from(z_, -end.magnitude);
  if (end.splits) keep_if([&](int64_t i) { return z_[i] > -end.magnitude || ids_[i] <= last_id; });
}

void Candidates::keep_typical(float typical_p, int64_t at_least) {
  const double all = mass();
  // |-log p - H| = |z - mean z|, as the mass cancels out.
  const float mean = static_cast<float>(mean_z(all));
  for (int64_t i = 0; i < count_; ++i) values_[i] = -std::fabs(z_[i] - mean);
  keep_from(values_, -cut(values_, typical_p * all, at_least).magnitude);
}

void Candidates::keep_min_p(float min_p, int64_t at_least) {
  keep_probable(min_p, at_least);  // the largest p is exp(0)
}

void Candidates::keep_epsilon(float epsilon, int64_t at_least) { keep_probable(epsilon * mass(), at_least); }

void Candidates::keep_eta(float eta, int64_t at_least) {
  const double all = mass(), entropy = std::log(all) - mean_z(all);
  keep_probable(std::min<double>(eta, std::sqrt(static_cast<double>(eta)) * std::exp(-entropy)) * all, at_least);
}

// Keeps the candidates whose p is at least the bound; if they are too few, the most probable with their equals.
void Candidates::keep_probable(double bound, int64_t at_least) {
  const float least = rounded_up(bound);
  if (count_from(p_, least) >= std::min(at_least, count_)) keep_from(p_, least);
  else keep_top_k(at_least);
}

int64_t Candidates::draw(double u) const {
  const int64_t block = std::max<int64_t>(256, (count_ + kBuckets - 1) / kBuckets);
  double all = 0.0;
  for (int64_t first = 0, k = 0; first < count_; first += block, ++k) {
    masses_[k] = sum(first, std::min(first + block, count_), [this](int64_t i) { return static_cast<double>(p_[i]); });
    all += masses_[k];
  }
  const double target = std::min(u * all, std::nextafter(all, 0.0));
  double before = 0.0;
  int64_t k = 0;
  while ((k + 1) * block < count_ && before + masses_[k] <= target) before += masses_[k++];
  int64_t last = -1;
  for (int64_t i = k * block; i < count_ && before <= target; ++i) {
    if (p_[i] <= 0.0f) continue;
    before += p_[i];
    last = ids_[i];
  }
  return last;
}

}  // namespace codegen_fast::cpu
