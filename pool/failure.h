// The core's one exception: a named failure with the numbers a reader needs. python_module.cpp turns it into
// the class of the same name in maru.errors. A miss, a full pool or a lost race is never a failure: it is an
// Outcome.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace maru {

class Failure : public std::exception {
 public:
  using Value = std::variant<int64_t, std::string>;
  using Fields = std::vector<std::pair<std::string, Value>>;

  // `kind` is the name of the class in maru.errors; `fields` become its attributes.
  Failure(std::string kind, std::string message, Fields fields = {})
      : kind_(std::move(kind)), message_(std::move(message)), fields_(std::move(fields)) {}

  const char* what() const noexcept override { return message_.c_str(); }
  const std::string& kind() const { return kind_; }
  const Fields& fields() const { return fields_; }

 private:
  std::string kind_;
  std::string message_;
  Fields fields_;
};

// What the system call that failed just now said of it.
inline std::string reason() { return std::strerror(errno); }

}  // namespace maru
