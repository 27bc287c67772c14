// isa_test             what was built, what this machine executes, best first, and the table that is chosen
// isa_test NAME ...    tests these instruction sets: every function of their tables against sums in double, and a
//                      small model through the ops against the portable build
#include <chrono>

#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/pool.h"
#include "checks.h"

namespace isa_test {
namespace {

struct Case {
  Weights weights;
  DType pages;
  int64_t prompt;
  // How far an instruction set may be from the portable one. Sums are rounded otherwise, which decides now and then how
  // a key or a value is rounded to its page's type; or how an activation is to its int8 code, and then the error is
  // that of quantisation itself, about 0.6% of a product, of which one follows another.
  double bound;
};
const Case kCases[] = {
    {{DType::f32}, DType::f32, 37, 2e-6},
    {{DType::f16}, DType::f16, 37, 1.0 / 2048},
    {{DType::bf16}, DType::bf16, 37, 1.0 / 256},
    {{DType::i8}, DType::f32, 37, 1e-2},
    {{DType::i8, 32}, DType::f32, 37, 1e-2},
    {{DType::i4, 32}, DType::f32, 37, 1e-2},
    {{DType::i8}, DType::f16, 260, 1e-2},
};

const ModelRun& portable_run(const Case& c) {
  static std::vector<std::pair<const Case*, ModelRun>> runs;
  for (const auto& [of, run] : runs)
    if (of == &c) return run;
  cpu::force_isa("portable");
  return runs.emplace_back(&c, run_model(c.weights, c.pages, c.prompt)).second;
}

std::string text(const Weights& w) {
  return name_of(w.type) + (w.group_cols ? " in groups of " + std::to_string(w.group_cols) : "");
}

bool same(const ModelRun& a, const ModelRun& b) {
  return a.tokens == b.tokens && a.logits.size() == b.logits.size() &&
         std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)) == 0;
}

void test_model(const std::string& isa) {
  for (const Case& c : kCases) {
    const ModelRun expected = portable_run(c);
    cpu::force_isa(isa);
    const ModelRun run = run_model(c.weights, c.pages, c.prompt);
    double error = 0, square = 0;
    for (size_t i = 0; i < run.logits.size(); ++i) {
      error += std::pow(double{run.logits[i]} - expected.logits[i], 2);
      square += std::pow(double{expected.logits[i]}, 2);
    }
    const double relative = std::sqrt(error / square);
    std::printf("  %-13s model of weights of %s, pages of %s, prompt of %ld: %.1e from portable\n", isa.c_str(),
                text(c.weights).c_str(), name_of(c.pages), long(c.prompt), relative);
    EXPECT(relative <= c.bound, "%s, %s: %g, at most %g", text(c.weights).c_str(), name_of(c.pages), relative, c.bound);
    for (int64_t token : run.tokens) EXPECT(token >= 0 && token < 1001, "token %ld", long(token));
    if (c.prompt > cpu::kSplit) continue;
    cpu::set_num_threads(1);
    EXPECT(same(run, run_model(c.weights, c.pages, c.prompt)), "%s: other bits on one thread", text(c.weights).c_str());
    cpu::set_num_threads(2);
  }
}

// FNV-1a over what the portable build computes: every machine must print the same. Prompts that fit one split of keys:
// merging splits takes the C library's expf.
uint64_t portable_bits() {
  uint64_t hash = 0xcbf29ce484222325u;
  auto add = [&](const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001b3u;
  };
  for (const Case& c : kCases) {
    if (c.prompt > cpu::kSplit) continue;
    const ModelRun& run = portable_run(c);
    add(run.logits.data(), run.logits.size() * sizeof(float));
    add(run.tokens.data(), run.tokens.size() * sizeof(int64_t));
  }
  return hash;
}

}  // namespace
}  // namespace isa_test

int main(int argc, char** argv) {
  using namespace isa_test;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::printf("built: %s\nchosen: %s\nexecutable:", CODEGEN_FAST_BUILT, cpu::kernels().name);
  for (const std::string& name : cpu::available_isas()) std::printf(" %s", name.c_str());
  std::printf("\n");
  cpu::set_num_threads(2);
  const auto start = std::chrono::steady_clock::now();
  auto seconds = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  try {
    for (int i = 1; i < argc; ++i) {
      g_isa = argv[i];
      cpu::force_isa(g_isa);
      const Kernels& k = cpu::kernels();
      for (Fence side : {Fence::after, Fence::before}) {
        g_fence = side;
        test_rows(k);
        test_activations(k);
        test_weights(k);
        test_products(k);
        test_products_i8(k);
        test_products_i8g(k);
        test_products_i4(k);
        test_attention(k);
      }
      test_conversions(k);
      test_model(g_isa);
      std::printf("%s: %s (%.1f s)\n", argv[i], g_failures ? "FAILED" : "passed", seconds());
    }
    if (argc > 1) std::printf("portable bits: %016llx\n", static_cast<unsigned long long>(portable_bits()));
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s: %s\n", g_isa.c_str(), e.what());
    return 2;
  }
  if (g_failures) std::fprintf(stderr, "%d expectations failed\n", g_failures);
  return g_failures ? 1 : 0;
}
