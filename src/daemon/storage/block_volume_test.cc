#include "src/daemon/storage/block_volume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <nlohmann/json.hpp>
#include <set>

#include "src/daemon/storage/testing/loop_device.h"
#include "src/daemon/storage/testing/storage_fixture.h"

namespace magnetar::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;
using Json = nlohmann::json;
using Kind = StorageStep::Kind;

class BlockVolumeTest : public ContainerStorageTest {
 protected:
  void SetUp() override {
    ContainerStorageTest::SetUp();
    if (IsSkipped()) return;
    loop_ = AttachLoop(File("volume", std::string(65536, 'v')), &path_);
    if (!loop_.ok()) GTEST_SKIP() << "needs root and loop devices";
    struct stat st = {};
    ASSERT_EQ(::stat(path_.c_str(), &st), 0);
    number_ = st.st_rdev;
  }

  Json Entry(const std::string& path, dev_t number) {
    return {{"path", path}, {"type", "b"}, {"major", ::major(number)}, {"minor", ::minor(number)}};
  }
  // A container that has the volume at a path, "/dev/x" with "rwm" for example.
  ContainerRequest Wants(const std::string& id,
                         const std::vector<std::pair<std::string, std::string>>& places) {
    ContainerRequest request = Request(RootfsMount("bind", Directory("native/" + id), {"rbind"}));
    request.container_id = id;
    Json spec = Json::parse(request.spec_json);
    for (const auto& [place, access] : places) {
      spec["linux"]["devices"].push_back(Entry(place, number_));
      request.devices.push_back({path_, place, access});
    }
    request.spec_json = spec.dump();
    return request;
  }
  absl::Status PrepareStatus(ContainerRequest request) {
    return Prepare(std::move(request)).status();
  }

  UniqueFd loop_;
  std::string path_;
  dev_t number_ = 0;
};

TEST_F(BlockVolumeTest, BecomesADisk) {
  const auto prepared = Prepare(Wants("c1", {{"/dev/xvda", "rwm"}}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  ASSERT_EQ(prepared->storages_size(), 1);
  const auto& storage = prepared->storages(0);
  EXPECT_EQ(storage.kind(), agent::v1::Storage::BLOCK_DEVICE);
  EXPECT_EQ(storage.device_index(), 0u);
  EXPECT_EQ(storage.device_access(), "rwm");
  EXPECT_FALSE(storage.read_only());
  ASSERT_EQ(vm_.disks.count(storage.serial()), 1u);
  EXPECT_FALSE(vm_.disks[storage.serial()].read_only);
  char byte = 0;
  EXPECT_EQ(::pread(vm_.disks[storage.serial()].fd.get(), &byte, 1, 0), 1);
  EXPECT_EQ(byte, 'v');
  // Claimed: nobody can mount it, nor give it to another VM.
  EXPECT_LT(::open(path_.c_str(), O_RDWR | O_EXCL | O_CLOEXEC), 0);
  const Json device = Json::parse(prepared->spec())["linux"]["devices"][0];
  EXPECT_EQ(device["major"], 0) << "the host's numbers mean nothing in the guest";
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
  EXPECT_TRUE(UniqueFd(::open(path_.c_str(), O_RDWR | O_EXCL | O_CLOEXEC)).ok());
}

TEST_F(BlockVolumeTest, ReadOnlyIsHeldOnTheHost) {
  const auto prepared = Prepare(Wants("c1", {{"/dev/xvda", "r"}}));
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const auto& disk = vm_.disks[prepared->storages(0).serial()];
  EXPECT_TRUE(disk.read_only);
  EXPECT_EQ(::fcntl(disk.fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, IsOneDiskForAllContainersOfAPod) {
  const auto first = Prepare(Wants("c1", {{"/dev/xvda", "rwm"}}));
  const auto second = Prepare(Wants("c2", {{"/dev/a", "r"}, {"/dev/b", "rw"}}));
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_THAT(vm_.disks, SizeIs(1));
  const std::string serial = first->storages(0).serial();
  ASSERT_EQ(second->storages_size(), 2);
  for (const auto& storage : second->storages()) EXPECT_EQ(storage.serial(), serial);
  ASSERT_TRUE(Release("c1").ok());
  EXPECT_THAT(vm_.disks, SizeIs(1));
  // It comes again, and the other goes.
  ASSERT_TRUE(PrepareStatus(Wants("c1", {{"/dev/xvda", "rwm"}})).ok());
  ASSERT_TRUE(Release("c2").ok());
  EXPECT_THAT(vm_.disks, SizeIs(1));
  ASSERT_TRUE(Release("c1").ok());
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, WhatIsAttachedReadOnlyDoesNotBecomeWritable) {
  ASSERT_TRUE(PrepareStatus(Wants("c1", {{"/dev/x", "r"}})).ok());
  ASSERT_TRUE(PrepareStatus(Wants("c2", {{"/dev/x", "r"}})).ok());
  const absl::Status status = PrepareStatus(Wants("c3", {{"/dev/x", "rw"}}));
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              StartsWith("linux.devices[0] /dev/x: " + path_ + ": another container of the pod"));
  ASSERT_TRUE(Release("c1").ok() && Release("c2").ok());
  EXPECT_TRUE(PrepareStatus(Wants("c3", {{"/dev/x", "rw"}})).ok());
  ASSERT_TRUE(Release("c3").ok());
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, ContainersThatComeAndGoAtOnce) {
  asio::io_context io;
  int done = 0;
  for (int i = 0; i < 6; ++i) {
    const std::string id = absl::StrCat("c", i);
    auto life = [](ContainerStorage* storage, SandboxStorage* sandbox, ContainerRequest request,
                   FakeVm* vm, int* count) -> Co<void> {
      const std::string container = request.container_id;
      for (int round = 0; round < 5; ++round) {
        auto prepare = storage->Prepare(*sandbox, ContainerRequest(request));
        const auto result = co_await std::move(prepare);
        EXPECT_TRUE(result.ok()) << result.status();
        EXPECT_THAT(vm->disks, SizeIs(1));
        auto release = storage->Release(*sandbox, container);
        const absl::Status released = co_await std::move(release);
        EXPECT_TRUE(released.ok()) << released;
      }
      ++*count;
    };
    asio::co_spawn(io, life(storage_.get(), &sandbox_, Wants(id, {{"/dev/x", "rwm"}}), &vm_, &done),
                   asio::detached);
  }
  io.run();
  EXPECT_EQ(done, 6);
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, AttachedByADaemonThatEndedMeanwhile) {
  ASSERT_TRUE(PrepareStatus(Wants("c1", {{"/dev/x", "rwm"}})).ok());
  // Its next step was not written any more: whether the disk is there is not known.
  std::erase_if(journal_, [](const StorageStep& step) { return step.kind == Kind::kVolumeUse; });
  storage_ = ContainerStorage::Create();
  ASSERT_TRUE(PrepareStatus(Wants("c2", {{"/dev/x", "rwm"}})).ok());
  EXPECT_THAT(vm_.disks, SizeIs(1));
  ASSERT_TRUE(Release("c1").ok());
  EXPECT_THAT(vm_.disks, SizeIs(1)) << "the other container uses it";
  ASSERT_TRUE(Release("c2").ok());
  ExpectNothingLeft();

  // And where it is not.
  journal_.push_back({Kind::kVolumeDisk, "c1", "", path_, BlockVolumeSerial(number_, false)});
  ASSERT_TRUE(PrepareStatus(Wants("c2", {{"/dev/x", "rwm"}})).ok());
  EXPECT_THAT(vm_.disks, SizeIs(1));
  ASSERT_TRUE(Release("c1").ok() && Release("c2").ok());
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, FailuresLeaveNothing) {
  vm_.add_disk_status = absl::UnavailableError("QMP: gone");
  EXPECT_TRUE(absl::IsUnavailable(PrepareStatus(Wants("c1", {{"/dev/x", "rwm"}}))));
  ExpectNothingLeft();
  vm_.add_disk_status = absl::OkStatus();
  ContainerRequest later = Wants("c1", {{"/dev/x", "rwm"}});
  Json spec = Json::parse(later.spec_json);
  spec["mounts"] = {Bind("/dev/null", "/null")};
  later.spec_json = spec.dump();
  EXPECT_TRUE(absl::IsFailedPrecondition(PrepareStatus(std::move(later))));
  ExpectNothingLeft();

  ASSERT_TRUE(PrepareStatus(Wants("c1", {{"/dev/x", "rwm"}})).ok());
  vm_.remove_disk_status = absl::DeadlineExceededError("guest does not let go");
  const absl::Status released = Release();
  EXPECT_TRUE(absl::IsDeadlineExceeded(released)) << released;
  EXPECT_THAT(std::string(released.message()), HasSubstr(path_));
  EXPECT_THAT(journal_, ::testing::Not(IsEmpty()));
  vm_.remove_disk_status = absl::OkStatus();
  EXPECT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, DevicesThatCannotBeHad) {
  const UniqueFd held(::open(path_.c_str(), O_RDWR | O_EXCL | O_CLOEXEC));
  const auto refused = [this](ContainerRequest request) {
    const absl::Status status = PrepareStatus(std::move(request));
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    ExpectNothingLeft();
    return std::string(status.message());
  };
  EXPECT_THAT(refused(Wants("c1", {{"/dev/x", "rw"}})),
              HasSubstr("linux.devices[0] /dev/x: image " + path_ + ": it is mounted or attached"));

  ContainerRequest gone = Wants("c1", {{"/dev/x", "rw"}});
  gone.devices[0].host_path = top_ + "/gone";
  EXPECT_THAT(refused(gone), HasSubstr("/dev/x: image " + top_ + "/gone: open: No such file"));

  ContainerRequest file = Wants("c1", {{"/dev/x", "r"}});
  file.devices[0].host_path = File("file", "x");
  EXPECT_THAT(refused(file), HasSubstr("/file: it is no block device"));

  ContainerRequest other = Wants("c1", {{"/dev/x", "r"}});
  Json spec = Json::parse(other.spec_json);
  spec["linux"]["devices"][0]["minor"] = ::minor(number_) + 1;
  other.spec_json = spec.dump();
  EXPECT_THAT(refused(other), HasSubstr("when the container was made"));
}

TEST_F(BlockVolumeTest, ALoopDeviceWithoutAFile) {
  const ContainerRequest request = Wants("c1", {{"/dev/x", "rw"}});
  ASSERT_EQ(::ioctl(loop_.get(), LOOP_CLR_FD, 0), 0);
  loop_.reset();
  const absl::Status status = PrepareStatus(request);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_ + ": it has no contents"));
  ExpectNothingLeft();
}

TEST_F(BlockVolumeTest, AFileThatWasRemovedStaysWhatItIs) {
  ASSERT_EQ(::unlink((top_ + "/volume").c_str()), 0);
  EXPECT_TRUE(PrepareStatus(Wants("c1", {{"/dev/x", "rw"}})).ok());
  ASSERT_TRUE(Release().ok());
  ExpectNothingLeft();
}

TEST(BlockVolumeSerialTest, FitsADisk) {
  EXPECT_EQ(BlockVolumeSerial(::makedev(7, 3), false), "mgr-b7.3");
  std::set<std::string> serials;
  for (const bool read_only : {false, true}) {
    for (const dev_t number : {::makedev(4095, 1048575), ::makedev(7, 3), ::makedev(73, 0)}) {
      const std::string serial = BlockVolumeSerial(number, read_only);
      EXPECT_LE(serial.size(), 20u);
      serials.insert(serial);
    }
  }
  EXPECT_THAT(serials, SizeIs(6));
}

}  // namespace
}  // namespace magnetar::daemon
