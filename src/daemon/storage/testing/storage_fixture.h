#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_future.hpp>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "magnetar/files.h"
#include "magnetar/mounts.h"
#include "src/common/testing/mount_namespace.h"
#include "src/daemon/storage/container_storage.h"
#include "src/daemon/storage/fake_vm.h"

namespace magnetar::daemon {

inline const absl::Status& OwnMounts() {
  static const absl::Status entered = EnterMountNamespace();
  return entered;
}

// Real mounts below a tmpfs of the test's own.
class ContainerStorageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!own_mounts_.ok()) GTEST_SKIP() << own_mounts_;
    char path[] = "/tmp/container_storage_test.XXXXXX";
    top_ = ::mkdtemp(path);
    ASSERT_EQ(::mount("tmpfs", top_.c_str(), "tmpfs", 0, nullptr), 0);
    sandbox_.sandbox_id = "5a4d";
    sandbox_.directory = top_ + "/run/5a4d";
    sandbox_.shared_directory = sandbox_.directory + "/shared";
    ASSERT_TRUE(MakeDirectories(sandbox_.shared_directory).ok());
    // Read-only for the file server, as the daemon makes it; and shared, as it once was.
    const char* shared = sandbox_.shared_directory.c_str();
    ASSERT_EQ(::mount(shared, shared, nullptr, MS_BIND, nullptr), 0);
    ASSERT_EQ(::mount(nullptr, shared, nullptr, MS_SHARED, nullptr), 0);
    ASSERT_EQ(::mount(nullptr, shared, nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0);
    sandbox_.vm = &vm_;
    sandbox_.blocking = &pool_;
    sandbox_.journal_add = [this](const StorageStep& step) {
      // Like the daemon's: what it refuses to write is in its memory all the same.
      journal_.push_back(step);
      if (!journal_status_.ok()) return journal_status_;
      // Written before the step is done.
      if (step.kind == StorageStep::Kind::kMount) {
        EXPECT_FALSE(IsMounted(step.path));
      }
      ++journalled_;
      return absl::OkStatus();
    };
    sandbox_.journal_remove = [this](const StorageStep& step) {
      if (step.kind == StorageStep::Kind::kMount) {
        EXPECT_FALSE(IsMounted(step.path));
      }
      std::erase_if(journal_, [&step](const StorageStep& s) {
        return s.kind == step.kind && s.container_id == step.container_id && s.path == step.path &&
               s.serial == step.serial;
      });
      return absl::OkStatus();
    };
    sandbox_.journal_steps = [this] { return journal_; };
    storage_ = ContainerStorage::Create();
  }
  void TearDown() override {
    if (top_.empty()) return;
    ::umount2(top_.c_str(), MNT_DETACH);
    ::rmdir(top_.c_str());
  }

  std::vector<std::string> Mounts() {
    std::vector<std::string> points = MountPoints(*ReadFile("/proc/self/mountinfo", 64 << 20));
    std::erase_if(
        points, [this](const std::string& point) { return !absl::StartsWith(point, Shared("")); });
    return points;
  }
  bool IsMounted(const std::string& path) {
    const auto mounts = Mounts();
    return std::find(mounts.begin(), mounts.end(), path) != mounts.end();
  }
  std::string Shared(const std::string& rest) { return sandbox_.shared_directory + "/" + rest; }
  static bool Exists(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

  std::string Directory(const std::string& name) {
    const std::string path = top_ + "/" + name;
    EXPECT_TRUE(MakeDirectories(path, 0755).ok());
    return path;
  }
  std::string File(const std::string& name, const std::string& contents) {
    const std::string path = top_ + "/" + name;
    EXPECT_TRUE(WriteFileAtomically(path, contents).ok());
    return path;
  }

  template <typename T>
  T Run(Co<T> coroutine) {
    asio::io_context io;
    auto future = asio::co_spawn(io, std::move(coroutine), asio::use_future);
    io.run();
    return future.get();
  }
  absl::StatusOr<agent::v1::PreparedContainer> Prepare(ContainerRequest request) {
    return Run(storage_->Prepare(sandbox_, std::move(request)));
  }
  absl::Status Release(const std::string& id = "c1") {
    return Run(storage_->Release(sandbox_, id));
  }

  containerd::types::Mount RootfsMount(const std::string& type, const std::string& source,
                                       const std::vector<std::string>& options) {
    containerd::types::Mount mount;
    mount.set_type(type);
    mount.set_source(source);
    for (const std::string& option : options) mount.add_options(option);
    return mount;
  }
  containerd::types::Mount Overlay(int layers, const std::string& parent = "snapshots") {
    std::vector<std::string> lower;
    for (int i = layers; i > 0; --i) {
      lower.push_back(Directory(absl::StrCat(parent, "/", i, "/fs")));
      File(absl::StrCat(parent, "/", i, "/fs/layer", i), absl::StrCat(i));
    }
    return RootfsMount("overlay", "overlay",
                       {"index=off", absl::StrCat("workdir=", Directory("work")),
                        absl::StrCat("upperdir=", Directory("upper")),
                        absl::StrCat("lowerdir=", absl::StrJoin(lower, ":"))});
  }
  ContainerRequest Request(const containerd::types::Mount& rootfs,
                           nlohmann::json mounts = nlohmann::json::array()) {
    ContainerRequest request;
    request.container_id = "c1";
    request.rootfs = {rootfs};
    const nlohmann::json spec = {
        {"root", {{"path", "rootfs"}}},
        {"mounts", std::move(mounts)},
        {"linux", {{"namespaces", {{{"type", "pid"}}, {{"type", "mount"}}}}}},
    };
    request.spec_json = spec.dump();
    return request;
  }
  static nlohmann::json Bind(const std::string& source, const std::string& destination,
                             std::vector<std::string> options = {"rbind", "rprivate", "rw"}) {
    return {
        {"source", source}, {"destination", destination}, {"type", "bind"}, {"options", options}};
  }

  void ExpectNothingLeft() {
    EXPECT_THAT(Mounts(), ::testing::IsEmpty());
    EXPECT_THAT(journal_, ::testing::IsEmpty());
    EXPECT_FALSE(Exists(Shared("c1")));
    EXPECT_THAT(vm_.disks, ::testing::IsEmpty());
  }

  // Before there are other threads: a namespace is a thread's.
  const absl::Status own_mounts_ = OwnMounts();
  std::string top_;
  FakeVm vm_;
  asio::thread_pool pool_{2};
  SandboxStorage sandbox_;
  std::vector<StorageStep> journal_;
  int journalled_ = 0;
  absl::Status journal_status_;
  std::unique_ptr<ContainerStorage> storage_;
};

}  // namespace magnetar::daemon
