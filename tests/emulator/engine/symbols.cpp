// Names and lines for messages, asked of addr2line (binutils, which g++ comes with).
#include <dlfcn.h>

#include <array>
#include <cstdio>

#include "grid.h"

namespace codegen_fast::emulator {
namespace {

// {function, file:line} of an address in this extension, of inlined functions the innermost first.
std::vector<std::array<std::string, 2>> ask(const void* address) {
  Dl_info info;
  if (!dladdr(address, &info) || !info.dli_fname) return {};
  const uintptr_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_fbase);
  char command[4096];
  std::snprintf(command, sizeof command, "addr2line -Cfi -e '%s' 0x%zx 2>/dev/null", info.dli_fname, size_t{offset});
  std::FILE* pipe = popen(command, "r");
  if (!pipe) return {};
  std::vector<std::array<std::string, 2>> found;
  std::string line;
  std::array<std::string, 2> entry;
  int part = 0;
  for (int c; (c = std::fgetc(pipe)) != EOF;) {
    if (c != '\n') {
      line += static_cast<char>(c);
      continue;
    }
    entry[part] = line;
    line.clear();
    part ^= 1;
    if (!part) found.push_back(entry);
  }
  pclose(pipe);
  return found;
}

void erase_all(std::string& s, const std::string& what) {
  for (size_t at; (at = s.find(what)) != std::string::npos;) s.erase(at, what.size());
}

}  // namespace

std::string kernel_name(const void* function) {
  const auto found = ask(function);
  std::string s = found.empty() ? "??" : found.back()[0];
  if (s == "??") return "(unnamed: addr2line is missing?)";
  for (const char* noise : {"codegen_fast::", "cuda::", "emulator::", "(anonymous namespace)::"}) erase_all(s, noise);
  // the parameters: the last pair of parentheses
  if (!s.empty() && s.back() == ')') {
    int depth = 0;
    size_t at = s.size();
    while (at-- > 0) {
      depth += s[at] == ')' ? 1 : s[at] == '(' ? -1 : 0;
      if (!depth) break;
    }
    s.resize(at);
  }
  if (s.starts_with("void ")) s.erase(0, 5);
  return s;
}

std::string source_line(const void* return_address) {
  std::string s;
  for (const auto& [function, line] : ask(static_cast<const char*>(return_address) - 1)) {
    if (line.starts_with("??") || line.find("emulated_intrinsics.h") != std::string::npos) continue;
    if (line.find("cuda_runtime.h") != std::string::npos) continue;
    s += (s.empty() ? "" : ", inlined in ") + short_path(line.substr(0, line.find(" (")));
  }
  return s;
}

std::string short_path(const std::string& path) {
  for (const char* folder : {"/csrc/", "/tests/"}) {
    const size_t at = path.rfind(folder);
    if (at != std::string::npos) return path.substr(at + 1);
  }
  return path;
}

}  // namespace codegen_fast::emulator
