#include "src/supervisor/ring.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace magnetar::supervisor {

void Ring::Append(std::string_view data) {
  if (data.empty() || capacity_ == 0) return;
  last_ = data.back();
  if (data.size() > capacity_) data.remove_prefix(data.size() - capacity_);
  if (data_.size() < capacity_) {
    const size_t n = std::min(data.size(), capacity_ - data_.size());
    data_.append(data.substr(0, n));
    data.remove_prefix(n);
  }
  while (!data.empty()) {
    const size_t n = std::min(data.size(), capacity_ - start_);
    data.copy(data_.data() + start_, n);
    start_ = (start_ + n) % capacity_;
    data.remove_prefix(n);
  }
}

std::string Ring::Contents() const { return data_.substr(start_) + data_.substr(0, start_); }

std::string Ring::Tail(size_t lines, size_t bytes) const {
  std::string all = Contents();
  absl::string_view text = absl::StripTrailingAsciiWhitespace(all);
  size_t from = text.size();
  for (; lines > 0 && from > 0; --lines) {
    const size_t newline = text.rfind('\n', from - 1);
    from = newline == absl::string_view::npos ? 0 : newline;
  }
  text.remove_prefix(std::max(from, text.size() - std::min(text.size(), bytes)));
  std::string out;
  for (const char c : absl::StripLeadingAsciiWhitespace(text)) {
    if (c == '\n' || !absl::ascii_iscntrl(static_cast<unsigned char>(c))) out.push_back(c);
  }
  return out;
}

void NamedLines::Append(std::string_view data) {
  while (!data.empty()) {
    const size_t newline = data.find('\n');
    const std::string_view piece = data.substr(0, newline);
    partial_.append(piece.substr(0, kMaxLineBytes - std::min(partial_.size(), kMaxLineBytes)));
    if (newline == std::string_view::npos) return;
    Flush();
    data.remove_prefix(newline + 1);
  }
}

void NamedLines::Flush() {
  if (!partial_.empty()) Emit(partial_);
  partial_.clear();
}

void NamedLines::Emit(const std::string& line) {
  ring_.Append(absl::StrCat(ring_.ends_in_newline() ? "" : "\n", name_, ": ",
                            absl::StripSuffix(line, "\r"), "\n"));
}

}  // namespace magnetar::supervisor
