// TextStops: the states of all rows of a call, under one stop. One call a step feeds them all.
#include "stops.h"

#include <pybind11/stl.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../stops/code_stops.h"
#include "../stops/literal_stops.h"
#include "../view.h"

namespace codegen_fast::bind {
namespace {

namespace py = pybind11;
using stops::RowStop;

std::string_view bytes_of(py::handle piece, const char* name) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (!PyBytes_Check(piece.ptr()))
    throw TypeError(std::string(name) + ": expected bytes, got " + Py_TYPE(piece.ptr())->tp_name);
  PyBytes_AsStringAndSize(piece.ptr(), &data, &size);
  return {data, static_cast<size_t>(size)};
}

class TextStops {
 public:
  using NewRow = std::function<std::unique_ptr<RowStop>()>;

  explicit TextStops(NewRow new_row) : new_row_(std::move(new_row)) {}
  TextStops(TextStops&&) = default;

  // A row begins, or begins again.
  void open(int64_t row, py::bytes prompt) {
    std::unique_ptr<RowStop> stop = new_row_();
    stop->begin(bytes_of(prompt, "prompt"));
    rows_[row] = std::move(stop);
  }

  // pieces[i] are the next bytes of rows[i]. Returns the rows that end with them.
  std::vector<int64_t> feed(const std::vector<int64_t>& rows, const py::list& pieces) {
    if (rows.size() != pieces.size())
      throw ValueError("feed: got " + std::to_string(rows.size()) + " rows and " + std::to_string(pieces.size()) +
                       " pieces, expected one piece a row");
    // All are looked at before any is fed: what is refused changes nothing.
    std::vector<std::pair<RowStop*, std::string_view>> fed;
    fed.reserve(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) fed.emplace_back(&at(rows[i]), bytes_of(pieces[i], "pieces"));
    std::vector<int64_t> ended;
    for (size_t i = 0; i < rows.size(); ++i)
      if (fed[i].first->feed(fed[i].second)) ended.push_back(rows[i]);
    return ended;
  }

  std::optional<int64_t> cut(int64_t row) { return at(row).cut(); }
  int64_t pending(int64_t row) { return at(row).pending(); }
  void close(int64_t row) { rows_.erase(row); }

 private:
  RowStop& at(int64_t row) {
    const auto found = rows_.find(row);
    if (found == rows_.end()) throw ValueError("row " + std::to_string(row) + " is not open: call open first");
    return *found->second;
  }

  NewRow new_row_;
  std::unordered_map<int64_t, std::unique_ptr<RowStop>> rows_;
};

template <class Stop>
TextStops::NewRow rows_of() {
  return [] { return std::make_unique<Stop>(); };
}

TextStops::NewRow code_rows(const std::string& unit) {
  if (unit == "function") return rows_of<stops::FunctionStop>();
  if (unit == "statement") return rows_of<stops::StatementStop>();
  if (unit == "line") return rows_of<stops::LineStop>();
  throw ValueError("unit: expected 'function', 'statement' or 'line', got '" + unit + "'");
}

void require_text(const std::vector<std::string>& texts, const char* name) {
  for (const std::string& text : texts)
    if (text.empty()) throw ValueError(std::string(name) + ": an empty text stands everywhere");
}

TextStops::NewRow pattern_rows(const std::vector<std::tuple<py::bytes, bool, int32_t>>& given) {
  std::vector<stops::Pattern> patterns;
  for (const auto& [text, at_line_start, occurrence] : given) {
    patterns.push_back({text, at_line_start, occurrence});
    require_text({patterns.back().text}, "patterns");
    if (occurrence < 1) throw ValueError("patterns: occurrence " + std::to_string(occurrence) + ", expected 1 or more");
  }
  const auto shared = std::make_shared<const stops::Patterns>(std::move(patterns));
  return [shared] { return std::make_unique<stops::PatternStop>(shared); };
}

TextStops::NewRow string_rows(const std::vector<py::bytes>& given) {
  const std::vector<std::string> strings(given.begin(), given.end());
  require_text(strings, "strings");
  const auto shared = std::make_shared<const stops::Automaton>(strings);
  return [shared] { return std::make_unique<stops::StringStop>(shared); };
}

}  // namespace

void bind_stops(py::module_& m) {
  py::class_<TextStops>(m, "TextStops", py::module_local())
      .def_static("at_code", [](const std::string& unit) { return TextStops(code_rows(unit)); }, py::arg("unit"))
      // (text, at a line's start?, which occurrence) of each
      .def_static("at_patterns", [](const std::vector<std::tuple<py::bytes, bool, int32_t>>& patterns) {
        return TextStops(pattern_rows(patterns));
      }, py::arg("patterns"))
      .def_static("at_strings", [](const std::vector<py::bytes>& strings) { return TextStops(string_rows(strings)); },
                  py::arg("strings"))
      .def("open", &TextStops::open, py::arg("row"), py::arg("prompt"))
      .def("feed", &TextStops::feed, py::arg("rows"), py::arg("pieces"))
      .def("cut", &TextStops::cut, py::arg("row"))
      .def("pending", &TextStops::pending, py::arg("row"))
      .def("close", &TextStops::close, py::arg("row"));
}

}  // namespace codegen_fast::bind
