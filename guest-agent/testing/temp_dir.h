#pragma once

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "magnetar/files.h"

namespace magnetar::guest::testing {

// A directory of the test's own, removed with it.
class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/magnetar-guest-XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    path_ = name;
  }
  ~TempDir() { RemoveTree(path_).IgnoreError(); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return absl::StrCat(path_, "/", name); }
  // A file with its directories.
  void Write(const std::string& name, const std::string& contents) const {
    const std::string path = *this / name;
    if (!MakeDirectories(path.substr(0, path.rfind('/'))).ok()) std::abort();
    if (!WriteFileAtomically(path, contents).ok()) std::abort();
  }
  std::string Read(const std::string& name) const {
    const auto text = ReadFile(*this / name);
    return text.ok() ? *text : absl::StrCat("<", text.status().ToString(), ">");
  }

 private:
  std::string path_;
};

}  // namespace magnetar::guest::testing
