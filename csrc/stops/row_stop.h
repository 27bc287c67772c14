// What decides, while a row's text comes in pieces of bytes, where the row ends. No torch, no Python.
//
// Offsets are bytes of the completion. The answers depend on the bytes alone, not on how they are cut into pieces.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace codegen_fast::stops {

class RowStop {
 public:
  virtual ~RowStop() = default;

  // The text before the completion; once, before any feed.
  virtual void begin(std::string_view prompt) = 0;
  // The next bytes of the completion. True if the row ends with them; what comes after that is not looked at, unless
  // a class says otherwise.
  virtual bool feed(std::string_view piece) = 0;
  // Where the kept text ends; nothing: all of it is kept.
  virtual std::optional<int64_t> cut() const = 0;
  // Bytes at the end of the completion so far that may still be cut off.
  virtual int64_t pending() const = 0;
};

}  // namespace codegen_fast::stops
