// Memory that ends, or begins, at a page nobody may touch; the rest of its own pages holds a pattern.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace isa_test {

enum class Fence { after, before };
inline Fence g_fence = Fence::after;  // on which side of new buffers an access out of bounds crashes

// n elements of T, filled with bytes 0xff (NaN as floats, -1 as integers) until they are written.
template <class T>
class Fenced {
 public:
  explicit Fenced(int64_t n) : n_(n) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    bytes_ = (n * sizeof(T) + page - 1) / page * page;
    base_ = static_cast<char*>(mmap(nullptr, bytes_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) std::perror("mmap"), std::exit(2);
    inner_ = base_ + page;
    protect(PROT_READ | PROT_WRITE);
    std::memset(inner_, 0x5a, bytes_);
    data_ = reinterpret_cast<T*>(g_fence == Fence::after ? inner_ + bytes_ - n * sizeof(T) : inner_);
    std::memset(static_cast<void*>(data_), 0xff, n * sizeof(T));
  }
  Fenced(const std::vector<T>& values) : Fenced(static_cast<int64_t>(values.size())) {
    if (n_) std::memcpy(static_cast<void*>(data_), values.data(), n_ * sizeof(T));
    protect(PROT_READ);  // an input
  }
  ~Fenced() {
    for (char* p = inner_; p < inner_ + bytes_; ++p)
      if ((p < reinterpret_cast<char*>(data_) || p >= reinterpret_cast<char*>(data_ + n_)) && *p != 0x5a) {
        std::fprintf(stderr, "a byte beside a buffer of %lld elements was written\n", static_cast<long long>(n_));
        std::abort();
      }
    munmap(base_, bytes_ + 2 * (inner_ - base_));
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;

  T* data() const { return data_; }
  operator T*() const { return data_; }
  int64_t size() const { return n_; }
  std::vector<T> copy() const { return std::vector<T>(data_, data_ + n_); }
  void freeze() const { protect(PROT_READ); }

 private:
  void protect(int how) const {
    if (bytes_ && mprotect(inner_, bytes_, how)) std::perror("mprotect"), std::exit(2);
  }

  int64_t n_;
  size_t bytes_;
  char *base_, *inner_;
  T* data_;
};

}  // namespace isa_test
