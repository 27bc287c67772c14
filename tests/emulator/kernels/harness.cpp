// What Python calls to run a kernel of kKernels; through ctypes, so that such an extension is built in two seconds.
#include "harness.h"

#include <cstring>

#include "../engine/grid.h"

using namespace codegen_fast;

const int emulator::kArchitecture = CODEGEN_FAST_EMULATED_SM;

namespace {
thread_local std::string t_message;
cudaGraphExec_t g_graph = nullptr;
cudaStream_t g_stream = nullptr;
}  // namespace

// Null, or the message of a fault. Buffer i: names[i], pointers[i], bytes[i]; flags: 1 writable, 2 weight.
// blocks: 3 numbers. captured: the launch is recorded into a graph, and replay() runs it.
extern "C" __attribute__((visibility("default"))) const char* run(
    const char* kernel, uint64_t seed, const int* blocks, int threads, size_t shared_bytes, int num_buffers,
    const char* const* names, void* const* pointers, const size_t* bytes, const int* flags, const int* numbers,
    bool captured) {
  try {
    emulator::set_seed(seed);
    emulator::Regions regions;
    cuda::Arguments a = {};
    for (int i = 0; i < num_buffers; ++i) {
      const uintptr_t begin = reinterpret_cast<uintptr_t>(pointers[i]);
      regions.push_back({.name = names[i], .begin = begin, .end = begin + bytes[i], .writable = (flags[i] & 1) != 0,
                         .early = (flags[i] & 2) != 0});
      a.buffer[i] = pointers[i];
    }
    for (int i = 0; i < 6; ++i) a.number[i] = numbers[i];
    const emulator::MemoryScope scope(std::move(regions));
    if (captured && !g_stream) cudaStreamCreate(&g_stream);
    const cuda::StreamScope stream(0, captured ? g_stream : nullptr);
    if (captured)
      cuda::check_call(cudaStreamBeginCapture(g_stream, cudaStreamCaptureModeRelaxed), "beginning a capture");
    const cuda::NamedKernel* k = cuda::kKernels;
    while (k->name && std::strcmp(k->name, kernel) != 0) ++k;
    if (!k->name) throw std::runtime_error(std::string("no kernel ") + kernel);
    cuda::launch(kernel, k->kernel, {dim3(blocks[0], blocks[1], blocks[2]), threads, shared_bytes}, a);
    if (captured) {
      cudaGraph_t graph;
      cuda::check_call(cudaStreamEndCapture(g_stream, &graph), "ending a capture");
      cuda::check_call(cudaGraphInstantiate(&g_graph, graph, 0), "making a graph");
      cudaGraphDestroy(graph);
    }
    return nullptr;
  } catch (const std::exception& e) {
    t_message = e.what();
    return t_message.c_str();
  }
}

extern "C" __attribute__((visibility("default"))) const char* replay() {
  try {
    cuda::check_call(cudaGraphLaunch(g_graph, nullptr), "launching a graph");
    return nullptr;
  } catch (const std::exception& e) {
    t_message = e.what();
    return t_message.c_str();
  }
}
