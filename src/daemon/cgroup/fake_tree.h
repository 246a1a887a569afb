#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace magnetar::daemon {

// A directory that stands for /sys/fs/cgroup. Its control files are those that a test puts there.
class FakeTree : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/cgroup_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string Path(const std::string& path) const { return root_ + "/" + path; }
  bool Exists(const std::string& path) const { return std::filesystem::exists(Path(path)); }
  void Put(const std::string& path, const std::string& text = "") const {
    std::filesystem::create_directories(std::filesystem::path(Path(path)).parent_path());
    std::ofstream(Path(path)) << text;
  }
  std::string Get(const std::string& path) const {
    std::ifstream in(Path(path));
    return {std::istreambuf_iterator<char>(in), {}};
  }

  std::string root_;
};

}  // namespace magnetar::daemon
