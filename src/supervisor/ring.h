#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace magnetar::supervisor {

// The newest `capacity` bytes of what was appended. Memory grows with the
// contents, so that a quiet guest costs nothing.
class Ring {
 public:
  explicit Ring(size_t capacity) : capacity_(capacity) {}

  void Append(std::string_view data);
  // Oldest first.
  std::string Contents() const;
  // The last `lines` lines, at most `bytes` bytes, without control characters.
  std::string Tail(size_t lines, size_t bytes) const;
  bool ends_in_newline() const { return last_ == '\n'; }

 private:
  size_t capacity_;
  std::string data_;
  size_t start_ = 0;  // of the oldest byte, once data_ is full
  char last_ = '\n';
};

// Puts a process's output into the ring line by line, each with the name in front.
class NamedLines {
 public:
  NamedLines(Ring& ring, std::string name) : ring_(ring), name_(std::move(name)) {}
  void Append(std::string_view data);
  // What stands without its newline.
  void Flush();

 private:
  void Emit(const std::string& line);

  static constexpr size_t kMaxLineBytes = 1024;
  Ring& ring_;
  std::string name_;
  std::string partial_;
};

}  // namespace magnetar::supervisor
