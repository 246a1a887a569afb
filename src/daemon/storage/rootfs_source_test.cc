#include "src/daemon/storage/rootfs_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>

#include "src/daemon/containerd/fake_client.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;

containerd::types::Mount Mount(const std::string& type, const std::string& source) {
  containerd::types::Mount mount;
  mount.set_type(type);
  mount.set_source(source);
  return mount;
}

class RootfsSourceTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::vector<containerd::types::Mount>> Ask(std::vector<std::string> types) {
    asio::io_context io;
    auto future = asio::co_spawn(
        io, RootfsMounts(&containerd_, "k8s.io", "erofs", "key", "c1", std::move(types)),
        asio::use_future);
    io.run();
    return future.get();
  }

  FakeContainerdClient containerd_;
};

TEST_F(RootfsSourceTest, SnapshotsMountsAsTheyAre) {
  containerd_.snapshots["erofs/key"] = {Mount("overlay", "raw")};
  const auto mounts = Ask({"overlay"});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_EQ(mounts->front().source(), "raw");
}

TEST_F(RootfsSourceTest, WhatContainerdHasActivated) {
  containerd_.snapshots["erofs/key"] = {Mount("erofs", "l"), Mount("format/mkdir/overlay", "raw")};
  containerd_.activated["c1"] = {Mount("overlay", "active")};
  const auto mounts = Ask({"overlay"});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  ASSERT_EQ(mounts->size(), 1u);
  EXPECT_EQ(mounts->front().source(), "active");
}

TEST_F(RootfsSourceTest, TheGuestCannotInventTypes) {
  containerd_.snapshots["erofs/key"] = {Mount("overlay", "raw")};
  const auto nothing_activated = Ask({"bind\n"});
  EXPECT_TRUE(absl::IsFailedPrecondition(nothing_activated.status()));
  EXPECT_THAT(std::string(nothing_activated.status().message()), HasSubstr("[bind\\n]"));
  containerd_.activated["c1"] = {Mount("overlay", "active")};
  EXPECT_TRUE(absl::IsFailedPrecondition(Ask({"bind"}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Ask({}).status()));
}

TEST_F(RootfsSourceTest, ContainerdsErrors) {
  EXPECT_TRUE(absl::IsNotFound(Ask({"overlay"}).status()));
  containerd_.failure = absl::UnavailableError("away");
  EXPECT_TRUE(absl::IsUnavailable(Ask({"overlay"}).status()));
}

}  // namespace
}  // namespace magnetar::daemon
