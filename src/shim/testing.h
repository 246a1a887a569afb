#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace magnetar::shim {

class DirectoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/shim_test.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  void Put(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(
        std::filesystem::path(directory_ + "/" + name).parent_path());
    std::ofstream(directory_ + "/" + name) << text;
  }

  std::string directory_;
};

}  // namespace magnetar::shim
