#include "magnetar/files.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "magnetar/unique_fd.h"

namespace magnetar {
namespace {

class FilesTest : public ::testing::Test {
 protected:
  FilesTest() {
    std::string name = absl::StrCat(::testing::TempDir(), "/files_test.XXXXXX");
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    dir_ = name;
  }
  ~FilesTest() override { RemoveTree(dir_).IgnoreError(); }

  std::string Path(const std::string& name) const { return absl::StrCat(dir_, "/", name); }
  static bool Exists(const std::string& path) {
    struct stat st;
    return ::lstat(path.c_str(), &st) == 0;
  }
  static mode_t ModeOf(const std::string& path) {
    struct stat st = {};
    ::stat(path.c_str(), &st);
    return st.st_mode & 07777;
  }

  std::string dir_;
};

TEST_F(FilesTest, WritesAtomicallyAndReadsBack) {
  const std::string path = Path("record.json");
  ASSERT_TRUE(WriteFileAtomically(path, "old").ok());
  ASSERT_TRUE(WriteFileAtomically(path, std::string("new\0", 4)).ok());
  EXPECT_EQ(*ReadFile(path), std::string("new\0", 4));
  EXPECT_EQ(ModeOf(path), 0600u);
  EXPECT_FALSE(Exists(path + ".new"));
}

TEST_F(FilesTest, AFailedWriteLeavesTheOldContents) {
  const std::string path = Path("record.json");
  ASSERT_TRUE(WriteFileAtomically(path, "old").ok());
  // The temporary name is taken by a directory.
  ASSERT_TRUE(MakeDirectories(path + ".new").ok());
  EXPECT_FALSE(WriteFileAtomically(path, "new").ok());
  EXPECT_EQ(*ReadFile(path), "old");
}

TEST_F(FilesTest, ATemporaryFileOfACrashIsReplaced) {
  const std::string path = Path("record.json");
  ASSERT_TRUE(WriteFileAtomically(path + ".new", "left over and longer").ok());
  ASSERT_TRUE(WriteFileAtomically(path, "x").ok());
  EXPECT_EQ(*ReadFile(path), "x");
}

TEST_F(FilesTest, ReadErrors) {
  EXPECT_EQ(ReadFile(Path("absent")).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomically(Path("f"), std::string(100, 'x')).ok());
  EXPECT_EQ(ReadFile(Path("f"), 99).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(ReadFile(Path("f"), 100).ok());
  EXPECT_FALSE(ReadFile(dir_).ok());
}

TEST_F(FilesTest, WriteExistingDoesNotCreate) {
  EXPECT_EQ(WriteExisting(Path("absent"), "x").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteFileAtomically(Path("f"), "abc").ok());
  ASSERT_TRUE(WriteExisting(Path("f"), "x").ok());
  EXPECT_EQ(*ReadFile(Path("f")), "xbc");
}

TEST_F(FilesTest, MakeDirectories) {
  ASSERT_TRUE(MakeDirectories(Path("a/b//c/")).ok());
  ASSERT_TRUE(MakeDirectories(Path("a/b/c")).ok());
  EXPECT_EQ(ModeOf(Path("a/b/c")), 0700u);
  ASSERT_TRUE(WriteFileAtomically(Path("f"), "").ok());
  EXPECT_FALSE(MakeDirectories(Path("f")).ok());
  EXPECT_FALSE(MakeDirectories(Path("f/g")).ok());
}

TEST_F(FilesTest, RemoveFile) {
  ASSERT_TRUE(WriteFileAtomically(Path("f"), "").ok());
  EXPECT_TRUE(RemoveFile(Path("f")).ok());
  EXPECT_TRUE(RemoveFile(Path("f")).ok());
  EXPECT_FALSE(RemoveFile(dir_).ok());
}

TEST_F(FilesTest, RemoveTreeDoesNotFollowLinks) {
  ASSERT_TRUE(MakeDirectories(Path("kept")).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("kept/f"), "x").ok());
  ASSERT_TRUE(MakeDirectories(Path("tree/a/b")).ok());
  ASSERT_TRUE(WriteFileAtomically(Path("tree/a/f"), "x").ok());
  ASSERT_EQ(::symlink("../kept", Path("tree/link").c_str()), 0);
  ASSERT_EQ(::mkfifo(Path("tree/fifo").c_str(), 0600), 0);
  EXPECT_TRUE(RemoveTree(Path("tree")).ok());
  EXPECT_FALSE(Exists(Path("tree")));
  EXPECT_EQ(*ReadFile(Path("kept/f")), "x");
  EXPECT_TRUE(RemoveTree(Path("tree")).ok());
}

// A chain of directories, each in the one before; what its names are made of must not matter.
void Nest(const std::string& top, const std::string& name, int depth) {
  ASSERT_EQ(::mkdir(top.c_str(), 0700), 0);
  UniqueFd at(::open(top.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (int i = 0; i < depth; ++i) {
    ASSERT_EQ(::mkdirat(at.get(), name.c_str(), 0700), 0);
    UniqueFd file(::openat(at.get(), "file", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_TRUE(file.ok());
    at.reset(::openat(at.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(at.ok());
  }
}

TEST_F(FilesTest, RemoveTreeTakesAnyDepth) {
  // More levels than a process may have descriptors by default, and a path far beyond PATH_MAX.
  Nest(Path("tree"), "a name of some length\n", 5000);
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few = before;
  few.rlim_cur = 64;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  const absl::Status removed = RemoveTree(Path("tree"));
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_TRUE(removed.ok()) << removed;
  EXPECT_FALSE(Exists(Path("tree")));
}

TEST_F(FilesTest, RemoveTreeTakesManyEntries) {
  ASSERT_TRUE(MakeDirectories(Path("tree")).ok());
  for (int i = 0; i < 3000; ++i) {
    const std::string name = Path(absl::StrCat("tree/", i));
    if (i % 3 == 0) {
      ASSERT_TRUE(MakeDirectories(name + "/filled").ok());
    } else if (i % 3 == 1) {
      ASSERT_TRUE(MakeDirectories(name).ok());
    } else {
      ASSERT_EQ(::symlink("nowhere", name.c_str()), 0);
    }
  }
  const absl::Status removed = RemoveTree(Path("tree"));
  EXPECT_TRUE(removed.ok()) << removed;
  EXPECT_FALSE(Exists(Path("tree")));
}

TEST_F(FilesTest, RemoveTreeOfALinkRemovesTheLink) {
  ASSERT_TRUE(MakeDirectories(Path("kept")).ok());
  ASSERT_EQ(::symlink("kept", Path("link").c_str()), 0);
  EXPECT_TRUE(RemoveTree(Path("link")).ok());
  EXPECT_FALSE(Exists(Path("link")));
  EXPECT_TRUE(Exists(Path("kept")));
}

TEST_F(FilesTest, RemoveTreeRefusesAMount) {
  EXPECT_EQ(RemoveTree("/proc").code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace magnetar
