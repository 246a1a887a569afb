#include <gtest/gtest.h>

#include <cerrno>
#include <string>

#include "magnetar/ids.h"
#include "magnetar/status.h"
#include "magnetar/unique_fd.h"

namespace magnetar {
namespace {

TEST(ValidateIdTest, AcceptsContainerdIds) {
  EXPECT_TRUE(ValidateId("a", "id").ok());
  EXPECT_TRUE(ValidateId(std::string(76, 'f'), "id").ok());
  EXPECT_TRUE(ValidateId("a-b_c.d", "id").ok());
}

TEST(ValidateIdTest, RefusesEverythingElse) {
  for (const std::string& id :
       {std::string(), std::string(77, 'f'), std::string(".."), std::string("a/b"),
        std::string("a--b"), std::string("-a"), std::string("a-"), std::string("a\0b", 3)}) {
    EXPECT_EQ(ValidateId(id, "id").code(), absl::StatusCode::kInvalidArgument) << id;
  }
}

TEST(StatusTest, Errno) {
  const absl::Status status = ErrnoStatus(ENOENT, "open /x");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "open /x: No such file or directory");
}

TEST(StatusTest, AnnotateKeepsTheCode) {
  EXPECT_EQ(Annotate(absl::AbortedError("b"), "a"), absl::AbortedError("a: b"));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "a").ok());
}

TEST(UniqueFdTest, ClosesOnce) {
  int fds[2];
  ASSERT_EQ(::pipe(fds), 0);
  UniqueFd reader(fds[0]);
  {
    UniqueFd writer(fds[1]);
    UniqueFd moved = std::move(writer);
    EXPECT_FALSE(writer.ok());  // NOLINT(bugprone-use-after-move): what a move leaves is the test
    EXPECT_EQ(moved.get(), fds[1]);
  }
  char c;
  EXPECT_EQ(::read(reader.get(), &c, 1), 0);  // the write end is closed
  const int raw = reader.release();
  EXPECT_FALSE(reader.ok());
  EXPECT_EQ(::close(raw), 0);
}

}  // namespace
}  // namespace magnetar
