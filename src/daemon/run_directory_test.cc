#include "src/daemon/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

namespace magnetar::daemon {
namespace {

using std::chrono::milliseconds;

TEST(RunDirectoryTest, HasOneDaemon) {
  const std::string path = ::testing::TempDir() + "run-directory-one";
  ASSERT_EQ(MakeRunDirectory(path), absl::OkStatus());
  const auto first = LockRunDirectory(path);
  ASSERT_EQ(first.status(), absl::OkStatus());
  const auto second = LockRunDirectory(path, milliseconds(10));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), ::testing::HasSubstr(path));
}

TEST(RunDirectoryTest, IsWaitedFor) {
  const std::string path = ::testing::TempDir() + "run-directory-waited-for";
  ASSERT_EQ(MakeRunDirectory(path), absl::OkStatus());
  auto first = LockRunDirectory(path);
  ASSERT_EQ(first.status(), absl::OkStatus());
  auto second = std::async(std::launch::async,
                           [&path] { return LockRunDirectory(path, milliseconds(100000)); });
  EXPECT_EQ(second.wait_for(milliseconds(20)), std::future_status::timeout);
  first->reset();
  EXPECT_EQ(second.get().status(), absl::OkStatus());
}

}  // namespace
}  // namespace magnetar::daemon
