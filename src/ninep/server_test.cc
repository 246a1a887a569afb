#include "src/ninep/server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <thread>
#include <tuple>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "magnetar/files.h"
#include "src/ninep/credentials.h"
#include "src/ninep/testing/client.h"

namespace magnetar::ninep {
namespace {

using testing::Client;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kRoot = 0;

// A server of a fresh directory in this process, and a client that has attached to it.
class NinepServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Where there are extended attributes: a tmpfs has not all of them.
    char name[] = "/var/tmp/ninep.XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    ::umask(0);  // as in the jail
    Restart();
  }

  void TearDown() override {
    Stop();
    std::filesystem::remove_all(directory_);
  }

  void Restart() {
    Stop();
    UniqueFd root(::open(directory_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(root.ok());
    session_.emplace(std::move(root), Descriptors("/proc/self/fd/"));
    auto [near, far] = testing::SocketPair();
    client_.emplace(std::move(near));
    server_ = std::thread([this, stream = std::move(far)]() mutable {
      // Its securebits are no others'.
      status_ = PrepareCredentials();
      if (status_.ok()) status_ = Serve(std::move(stream), *session_, 3);
    });
    ASSERT_EQ(client_->Version(), 0);
    ASSERT_EQ(client_->Attach(kRoot), 0);
  }

  void Stop() {
    if (client_.has_value()) client_->Close();
    if (server_.joinable()) server_.join();
  }

  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }
  void Put(const std::string& name, const std::string& contents) {
    ASSERT_TRUE(WriteFileAtomically(Path(name), contents, 0644).ok());
  }
  std::string Get(const std::string& name) { return ReadFile(Path(name)).value_or("(none)"); }

  std::string directory_;
  std::optional<Session> session_;
  std::optional<Client> client_;
  std::thread server_;
  absl::Status status_;
};

TEST_F(NinepServerTest, VersionAgreesOnTheLongestMessage) {
  EXPECT_EQ(client_->Version(8192), 0);
  EXPECT_EQ(client_->answer.U32(), 8192U);
  EXPECT_EQ(client_->answer.String(), "9P2000.L");
  EXPECT_EQ(client_->Version(~0U), 0);
  EXPECT_EQ(client_->answer.U32(), kMaxMessageBytes);
  EXPECT_EQ(client_->Version(kMinMessageBytes - 1), EINVAL);
  // It begins anew.
  EXPECT_EQ(client_->Walk(kRoot, 1, {}), EBADF);
}

TEST_F(NinepServerTest, UnknownVersionIsToldSo) {
  Writer request(kTversion, 0xffff);
  request.U32(8192);
  request.String("9P2000.u");
  EXPECT_EQ(client_->Call(std::move(request)), 0);
  client_->answer.U32();
  EXPECT_EQ(client_->answer.String(), "unknown");
}

TEST_F(NinepServerTest, ReadsWhatIsThere) {
  Put("file", "contents");
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  ASSERT_EQ(client_->Open(1, O_RDONLY), 0);
  std::string data;
  EXPECT_EQ(client_->Read(1, 3, 100, data), 0);
  EXPECT_EQ(data, "tents");
  EXPECT_EQ(client_->Read(1, 100, 100, data), 0);
  EXPECT_EQ(data, "");
  EXPECT_EQ(client_->Write(1, 0, "x"), EBADF);
  EXPECT_EQ(client_->Open(1, O_RDONLY), EBADF) << "it is open";
  EXPECT_EQ(client_->Clunk(1), 0);
  EXPECT_EQ(client_->Clunk(1), EBADF);
}

TEST_F(NinepServerTest, AnswersAreNotLongerThanAgreedOn) {
  Put("file", std::string(100000, 'x'));
  ASSERT_EQ(client_->Version(8192), 0);
  ASSERT_EQ(client_->Attach(kRoot), 0);
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  ASSERT_EQ(client_->Open(1, O_RDONLY), 0);
  std::string data;
  EXPECT_EQ(client_->Read(1, 0, ~0U, data), 0);
  EXPECT_EQ(data.size(), 8192U - kIoHeaderBytes);
}

TEST_F(NinepServerTest, CreatesAndWrites) {
  ASSERT_EQ(client_->Walk(kRoot, 1, {}), 0);
  ASSERT_EQ(client_->Create(1, "new", O_RDWR | O_EXCL, 0640), 0);
  EXPECT_EQ(client_->Write(1, 0, "hello"), 0);
  EXPECT_EQ(client_->Write(1, 5, " world"), 0);
  EXPECT_EQ(Get("new"), "hello world");
  struct stat st = {};
  ASSERT_EQ(::stat(Path("new").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0640U);
  ASSERT_EQ(client_->Walk(kRoot, 2, {}), 0);
  EXPECT_EQ(client_->Create(2, "new", O_RDWR | O_EXCL, 0640), EEXIST);
  EXPECT_EQ(client_->Create(2, "new", O_RDWR | O_TRUNC, 0640), 0) << "opens what is there";
  EXPECT_EQ(Get("new"), "");
}

TEST_F(NinepServerTest, AppendsWhereTheFileEnds) {
  Put("log", "one\n");
  ASSERT_EQ(client_->Walk(kRoot, 1, {"log"}), 0);
  ASSERT_EQ(client_->Open(1, O_WRONLY | O_APPEND), 0);
  EXPECT_EQ(client_->Write(1, 0, "two\n"), 0) << "the client's idea of its size is old";
  EXPECT_EQ(Get("log"), "one\ntwo\n");
}

TEST_F(NinepServerTest, AFileOutlivesItsName) {
  ASSERT_EQ(client_->Walk(kRoot, 1, {}), 0);
  ASSERT_EQ(client_->Create(1, "gone", O_RDWR, 0600), 0);
  ASSERT_EQ(client_->Write(1, 0, "0123456789"), 0);
  ASSERT_EQ(::unlink(Path("gone").c_str()), 0);
  Client::Attributes attributes;
  EXPECT_EQ(client_->GetAttributes(1, attributes), 0);
  EXPECT_EQ(attributes.size, 10U);
  EXPECT_EQ(attributes.links, 0U);
  EXPECT_EQ(client_->SetAttributes(1, 0x8, 0, 0, 0, 4), 0);
  EXPECT_EQ(client_->SetAttributes(1, 0x1, 0400, 0, 0, 0), 0);
  std::string data;
  EXPECT_EQ(client_->Read(1, 0, 100, data), 0);
  EXPECT_EQ(data, "0123");
}

TEST_F(NinepServerTest, ADirectoryThatMovesIsStillTheSame) {
  std::filesystem::create_directories(Path("a/b"));
  Put("a/b/file", "x");
  ASSERT_EQ(client_->Walk(kRoot, 1, {"a", "b"}), 0);
  std::filesystem::rename(Path("a"), Path("elsewhere"));
  EXPECT_EQ(client_->Walk(1, 2, {"file"}), 0);
}

TEST_F(NinepServerTest, NamesLeadNowhereElse) {
  std::filesystem::create_directories(Path("d"));
  ASSERT_EQ(client_->Walk(kRoot, 1, {"d"}), 0);
  const std::vector<std::string> names = {"..", ".", "", "../d", "/etc", std::string("a\0b", 3)};
  for (const std::string& name : names) {
    EXPECT_EQ(client_->Walk(1, 2, {name}), ENOENT) << name;
    EXPECT_EQ(client_->Create(1, name, O_RDWR, 0600), EBADF) << name;
  }
  // Half of the way is answered, and there is no fid.
  EXPECT_EQ(client_->Walk(kRoot, 2, {"d", ".."}), 0);
  EXPECT_EQ(client_->answer.U16(), 1U);
  EXPECT_EQ(client_->Open(2, O_RDONLY), EBADF);
}

TEST_F(NinepServerTest, LinksAreTheClientsToFollow) {
  std::filesystem::create_symlink("/etc", Path("out"));
  std::filesystem::create_symlink("/etc/made-by-ninep", Path("dangling"));
  EXPECT_EQ(client_->Walk(kRoot, 1, {"out", "passwd"}), 0);
  EXPECT_EQ(client_->answer.U16(), 1U);
  ASSERT_EQ(client_->Walk(kRoot, 1, {"out"}), 0);
  EXPECT_EQ(client_->Open(1, O_RDONLY), ENXIO);
  EXPECT_EQ(client_->OfFid(kTreadlink, 1), 0);
  EXPECT_EQ(client_->answer.String(), "/etc");
  ASSERT_EQ(client_->Walk(kRoot, 2, {}), 0);
  EXPECT_EQ(client_->Create(2, "dangling", O_RDWR, 0600), ENXIO);
  EXPECT_FALSE(std::filesystem::exists("/etc/made-by-ninep"));
}

TEST_F(NinepServerTest, WhatIsNoFileIsNotOpened) {
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  ASSERT_EQ(client_->Walk(kRoot, 1, {"fifo"}), 0);
  EXPECT_EQ(client_->Open(1, O_RDWR), ENXIO);
  ASSERT_EQ(client_->Walk(kRoot, 2, {}), 0);
  EXPECT_EQ(client_->Create(2, "fifo", O_RDWR, 0600), ENXIO);
  Client::Attributes attributes;
  EXPECT_EQ(client_->GetAttributes(1, attributes), 0);
  EXPECT_TRUE(S_ISFIFO(attributes.mode));
}

TEST_F(NinepServerTest, ListsALargeDirectoryInParts) {
  std::set<std::string> expected = {".", ".."};
  for (int i = 0; i < 200; ++i) {
    const std::string name = absl::StrCat("a-file-with-a-long-name-", i);
    Put(name, "");
    expected.insert(name);
  }
  ASSERT_EQ(client_->Walk(kRoot, 1, {}), 0);
  ASSERT_EQ(client_->Open(1, O_RDONLY | O_DIRECTORY), 0);
  std::set<std::string> found;
  uint64_t offset = 0;
  for (std::string data;;) {
    ASSERT_EQ(client_->Read(1, offset, 1000, data, kTreaddir), 0);
    ASSERT_LE(data.size(), 1000U);
    if (data.empty()) break;
    Reader in(data);
    while (true) {
      in.Bytes(13);
      const uint64_t next = in.U64();
      in.U8();
      const std::string name(in.String());
      if (!in.ok()) break;
      offset = next;
      EXPECT_TRUE(found.insert(name).second) << name;
    }
  }
  EXPECT_EQ(found, expected);
}

TEST_F(NinepServerTest, MakesRenamesAndRemoves) {
  Writer mkdir(kTmkdir, 1);
  mkdir.U32(kRoot);
  mkdir.String("dir");
  mkdir.U32(01777);
  mkdir.U32(0);
  EXPECT_EQ(client_->Call(std::move(mkdir)), 0);
  Writer symlink(kTsymlink, 1);
  symlink.U32(kRoot);
  symlink.String("soft");
  symlink.String("target");
  symlink.U32(0);
  EXPECT_EQ(client_->Call(std::move(symlink)), 0);
  EXPECT_EQ(std::filesystem::read_symlink(Path("soft")), "target");
  Writer mknod(kTmknod, 1);
  mknod.U32(kRoot);
  mknod.String("fifo");
  for (const uint32_t field : {S_IFIFO | 0622U, 0U, 0U, 0U}) mknod.U32(field);
  EXPECT_EQ(client_->Call(std::move(mknod)), 0);

  ASSERT_EQ(client_->Walk(kRoot, 1, {"dir"}), 0);
  Put("file", "x");
  ASSERT_EQ(client_->Walk(kRoot, 2, {"file"}), 0);
  EXPECT_EQ(client_->Link(1, 2, "hard"), 0);
  Writer rename(kTrenameat, 1);
  rename.U32(kRoot);
  rename.String("file");
  rename.U32(1);
  rename.String("moved");
  EXPECT_EQ(client_->Call(std::move(rename)), 0);
  struct stat st = {};
  ASSERT_EQ(::stat(Path("dir/moved").c_str(), &st), 0);
  EXPECT_EQ(st.st_nlink, 2U);
  ASSERT_EQ(::stat(Path("dir").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 01777U);

  EXPECT_EQ(client_->Unlink(kRoot, "dir", AT_REMOVEDIR), ENOTEMPTY);
  EXPECT_EQ(client_->Unlink(1, "moved", 0), 0);
  EXPECT_EQ(client_->Unlink(1, "hard", 0), 0);
  EXPECT_EQ(client_->Unlink(kRoot, "dir", AT_REMOVEDIR), 0);
  EXPECT_EQ(client_->Unlink(kRoot, "soft", 1), EINVAL);
}

TEST_F(NinepServerTest, ExtendedAttributes) {
  Put("file", "");
  ASSERT_EQ(::setxattr(Path("file").c_str(), "user.one", "1", 1, 0), 0) << errno;
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  const auto set = [this](const std::string& name, const std::string& value, uint32_t flags) {
    EXPECT_EQ(client_->Walk(1, 9, {}), 0);
    EXPECT_EQ(client_->XattrCreate(9, name, value.size(), flags), 0);
    if (!value.empty()) {
      EXPECT_EQ(client_->Write(9, 0, value), 0);
    }
    return client_->Clunk(9);
  };
  std::string data;
  EXPECT_EQ(client_->XattrWalk(1, 2, "user.one"), 0);
  EXPECT_EQ(client_->answer.U64(), 1U);
  EXPECT_EQ(client_->Read(2, 0, 100, data), 0);
  EXPECT_EQ(data, "1");
  EXPECT_EQ(client_->XattrWalk(1, 3, "user.none"), ENODATA);
  EXPECT_EQ(set("user.two", "22", 0), 0);
  EXPECT_EQ(set("user.two", "33", XATTR_CREATE), EEXIST);
  EXPECT_EQ(client_->XattrWalk(1, 4, ""), 0);
  EXPECT_EQ(client_->Read(4, 0, 1000, data), 0);
  EXPECT_THAT(data, HasSubstr(std::string("user.two\0", 9)));
  EXPECT_EQ(set("user.two", "", XATTR_REPLACE), 0) << "a removal";
  EXPECT_EQ(client_->XattrWalk(1, 5, "user.two"), ENODATA);
}

TEST_F(NinepServerTest, ExtendedAttributesAreHeldWithinABound) {
  Put("file", "");
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  const auto create = [this](uint32_t fid) {
    EXPECT_EQ(client_->Walk(1, fid, {}), 0);
    return client_->XattrCreate(fid, "user.x", 65536);
  };
  uint32_t fid = 2;
  int error = 0;
  while (fid < 1000 && (error = create(fid)) == 0) ++fid;
  EXPECT_EQ(error, ENOMEM);
  EXPECT_GE(fid, 50U);
  EXPECT_LE(fid, 66U);
  // What was announced and never came is an error, and its room is there again.
  EXPECT_EQ(client_->Clunk(2), EINVAL);
  EXPECT_EQ(create(1001), 0);
}

TEST_F(NinepServerTest, AccessControlListsAreNeitherShownNorSet) {
  Put("file", "");
  // Version 2: the owner, the user 1, the group, the mask, others.
  std::string acl("\x02\0\0\0", 4);
  for (const auto& [tag, perm, id] : std::vector<std::tuple<int, int, uint32_t>>{
           {1, 6, ~0U}, {2, 7, 1}, {4, 4, ~0U}, {16, 7, ~0U}, {32, 4, ~0U}}) {
    for (const int value : {tag, perm}) acl += {static_cast<char>(value), 0};
    for (int i = 0; i < 4; ++i) acl += static_cast<char>(id >> (8 * i));
  }
  const std::string path = Path("file");
  ASSERT_EQ(::setxattr(path.c_str(), "system.posix_acl_access", acl.data(), acl.size(), 0), 0)
      << errno;
  ASSERT_EQ(::setxattr(path.c_str(), "user.one", "1", 1, 0), 0) << errno;
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  EXPECT_EQ(client_->XattrWalk(1, 2, "system.posix_acl_access"), EOPNOTSUPP);
  ASSERT_EQ(client_->XattrWalk(1, 3, ""), 0);
  std::string names;
  ASSERT_EQ(client_->Read(3, 0, 1000, names), 0);
  EXPECT_THAT(names, HasSubstr(std::string("user.one\0", 9)));
  EXPECT_THAT(names, ::testing::Not(HasSubstr("posix_acl")));
  ASSERT_EQ(client_->Walk(1, 4, {}), 0);
  EXPECT_EQ(client_->XattrCreate(4, "system.posix_acl_access", acl.size()), EOPNOTSUPP);
}

TEST_F(NinepServerTest, LocksAreTheClients) {
  Put("file", "");
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  ASSERT_EQ(client_->Open(1, O_RDWR), 0);
  EXPECT_EQ(client_->OfFid(kTlock, 1), 0);
  EXPECT_EQ(client_->answer.U8(), 0U);
}

// As Linux uses tags: one is free again with its answer, or with that to its flush, and the lowest
// that is free is taken. What a tag answers is never another's.
TEST_F(NinepServerTest, ManyRequestsAndFlushesAtOnce) {
  constexpr uint16_t kTags = 6;
  constexpr uint16_t kFlushes = 100;  // the flush of a tag has that much more
  std::map<uint32_t, uint64_t> paths;
  for (uint32_t fid = 1; fid <= 5; ++fid) {
    Put(absl::StrCat("f", fid), "");
    ASSERT_EQ(client_->Walk(kRoot, fid, {absl::StrCat("f", fid)}), 0);
    Client::Attributes attributes;
    ASSERT_EQ(client_->GetAttributes(fid, attributes), 0);
    paths[fid] = attributes.path;
  }
  std::map<uint16_t, uint32_t> asked;  // fids, by tag
  std::set<uint16_t> flushed;
  const auto is_free = [&](uint16_t tag) { return !asked.contains(tag) && !flushed.contains(tag); };
  for (uint32_t turn = 0; turn < 20000; ++turn) {
    for (uint16_t tag = 0; tag < kTags; ++tag) {
      if (!is_free(tag)) continue;
      asked[tag] = 1 + (turn + tag) % 5;
      Writer request(kTgetattr, tag);
      request.U32(asked[tag]);
      request.U64(0x7ff);
      client_->Send(std::move(request).Finish());
      if ((turn + tag) % 3 != 0) continue;
      flushed.insert(tag);
      Writer flush(kTflush, kFlushes + tag);
      flush.U16(tag);
      client_->Send(std::move(flush).Finish());
    }
    const std::string message = client_->Receive();
    ASSERT_FALSE(message.empty());
    Reader in(std::string_view(message).substr(5));
    uint16_t tag = in.U16();
    if (tag >= kFlushes) {
      tag -= kFlushes;
      ASSERT_EQ(flushed.erase(tag), 1U);
      ASSERT_FALSE(asked.contains(tag)) << "flushed before it was answered";
      continue;
    }
    in.U64();
    in.U8();
    in.U32();
    ASSERT_TRUE(asked.contains(tag)) << "an answer that nobody waits for";
    ASSERT_EQ(in.U64(), paths[asked[tag]]) << "another's answer";
    asked.erase(tag);
  }
}

TEST_F(NinepServerTest, AFlushIsAnsweredAfterWhatItIsAbout) {
  Writer attach(kTattach, 7);
  for (const uint32_t field : {5U, ~0U}) attach.U32(field);
  attach.String("");
  attach.String("");
  attach.U32(0);
  Writer flush(kTflush, 8);
  flush.U16(7);
  client_->Send(std::move(attach).Finish() + std::move(flush).Finish());
  EXPECT_EQ(static_cast<uint8_t>(client_->Receive()[4]), kTattach + 1);
  EXPECT_EQ(static_cast<uint8_t>(client_->Receive()[4]), kTflush + 1);
}

TEST_F(NinepServerTest, WhatIsWrongIsAnErrorOrTheEnd) {
  EXPECT_EQ(client_->Call(Writer(200, 1)), EOPNOTSUPP);
  EXPECT_EQ(client_->OfFid(kTremove, kRoot), EOPNOTSUPP) << "and fid 0 is gone";
  ASSERT_EQ(client_->Attach(kRoot), 0);
  EXPECT_EQ(client_->Attach(kRoot), EBADF);
  for (const uint8_t type :
       {kTattach, kTwalk, kTlopen, kTlcreate, kTread, kTwrite, kTmkdir, kTsetattr, kTrenameat,
        kTxattrcreate, kTremove, kTclunk, kTgetattr, kTreadlink, kTstatfs}) {
    EXPECT_EQ(client_->Call(Writer(type, 1)), EINVAL) << int{type};
  }
  EXPECT_EQ(client_->Walk(kRoot, 7, {}), 0) << "fid 0 is still there";
  client_->Send(std::string("\x03\0\0\0\0\0\0", 7));
  EXPECT_EQ(client_->Receive(), "");
  server_.join();
  EXPECT_TRUE(absl::IsInvalidArgument(status_)) << status_;
}

TEST_F(NinepServerTest, AClientThatLeavesIsNoError) {
  client_->Close();
  server_.join();
  EXPECT_TRUE(status_.ok()) << status_;
}

// Needs root.
class NinepRootTest : public NinepServerTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    NinepServerTest::SetUp();
  }
};

TEST_F(NinepRootTest, WhatIsMadeBelongsToWhoAttached) {
  // A directory that only its group may write to: whether the client's user may is the client's
  // affair.
  ASSERT_EQ(::chmod(directory_.c_str(), 0770), 0);
  ASSERT_EQ(client_->Attach(1, 1000), 0);
  ASSERT_EQ(client_->Walk(1, 2, {}), 0);
  ASSERT_EQ(client_->Create(2, "file", O_RDWR, 02755, 2000), 0);
  Writer mkdir(kTmkdir, 1);
  mkdir.U32(1);
  mkdir.String("dir");
  mkdir.U32(0700);
  mkdir.U32(2001);
  EXPECT_EQ(client_->Call(std::move(mkdir)), 0);
  struct stat st = {};
  ASSERT_EQ(::stat(Path("file").c_str(), &st), 0);
  EXPECT_THAT((std::vector<uint32_t>{st.st_uid, st.st_gid, st.st_mode & 07777}),
              ElementsAre(1000, 2000, 02755));
  ASSERT_EQ(::stat(Path("dir").c_str(), &st), 0);
  EXPECT_THAT((std::vector<uint32_t>{st.st_uid, st.st_gid}), ElementsAre(1000, 2001));
  // And nobody's afterwards.
  ASSERT_EQ(client_->Walk(kRoot, 3, {}), 0);
  ASSERT_EQ(client_->Create(3, "roots", O_RDWR, 0600), 0);
  ASSERT_EQ(::stat(Path("roots").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 0U);
}

TEST_F(NinepRootTest, ChangesOwnerAndModeTogether) {
  Put("file", "");
  ASSERT_EQ(client_->Walk(kRoot, 1, {"file"}), 0);
  EXPECT_EQ(client_->SetAttributes(1, 0x1 | 0x2 | 0x4, 06755, 12, 34, 0), 0);
  Client::Attributes attributes;
  EXPECT_EQ(client_->GetAttributes(1, attributes), 0);
  EXPECT_EQ(attributes.uid, 12U);
  EXPECT_EQ(attributes.gid, 34U);
  EXPECT_EQ(attributes.mode & 07777, 06755U);
}

TEST_F(NinepRootTest, AWriteTakesTheSetUidBitAway) {
  Put("program", "x");
  ASSERT_EQ(::chmod(Path("program").c_str(), 04755), 0);
  ASSERT_EQ(client_->Walk(kRoot, 1, {"program"}), 0);
  ASSERT_EQ(client_->Open(1, O_WRONLY), 0);
  ASSERT_EQ(client_->Write(1, 0, "y"), 0);
  struct stat st = {};
  ASSERT_EQ(::stat(Path("program").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0755U);
}

TEST_F(NinepRootTest, ReachesWhatIsMountedBelow) {
  std::filesystem::create_directories(Path("c1/rootfs"));
  ASSERT_EQ(::mount("none", Path("c1/rootfs").c_str(), "tmpfs", 0, nullptr), 0);
  const absl::Cleanup unmount = [this] { ::umount2(Path("c1/rootfs").c_str(), MNT_DETACH); };
  Put("c1/rootfs/inside", "x");
  std::map<uint64_t, std::string> seen;
  for (const std::vector<std::string>& way : std::vector<std::vector<std::string>>{
           {"c1"}, {"c1", "rootfs"}, {"c1", "rootfs", "inside"}}) {
    ASSERT_EQ(client_->Walk(kRoot, 1, way), 0);
    ASSERT_EQ(client_->answer.U16(), way.size()) << way.back();
    Client::Attributes attributes;
    ASSERT_EQ(client_->GetAttributes(1, attributes), 0);
    EXPECT_TRUE(seen.emplace(attributes.path, way.back()).second) << "the same file number";
    ASSERT_EQ(client_->Clunk(1), 0);
  }
}

TEST_F(NinepRootTest, AReadOnlyMountIsOne) {
  std::filesystem::create_directories(Path("ro"));
  Put("ro/file", "x");
  ASSERT_EQ(::mount(Path("ro").c_str(), Path("ro").c_str(), nullptr, MS_BIND, nullptr), 0);
  const absl::Cleanup unmount = [this] { ::umount2(Path("ro").c_str(), MNT_DETACH); };
  ASSERT_EQ(
      ::mount(nullptr, Path("ro").c_str(), nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr), 0);
  ASSERT_EQ(client_->Walk(kRoot, 1, {"ro", "file"}), 0);
  EXPECT_EQ(client_->Open(1, O_RDWR), EROFS);
  EXPECT_EQ(client_->SetAttributes(1, 0x1, 0777, 0, 0, 0), EROFS);
  EXPECT_EQ(client_->SetAttributes(1, 0x8, 0, 0, 0, 0), EROFS);
  EXPECT_EQ(client_->SetAttributes(1, 0x2, 0, 5, 0, 0), EROFS);
  ASSERT_EQ(client_->Walk(kRoot, 2, {"ro"}), 0);
  EXPECT_EQ(client_->Create(2, "new", O_RDWR, 0600), EROFS);
}

}  // namespace
}  // namespace magnetar::ninep
