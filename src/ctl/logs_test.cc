#include "src/ctl/logs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <vector>

namespace magnetar::ctl {
namespace {

constexpr char kLine[] = "2026-11-23T22:00:00.123+0000 info vm started sandbox=s1 pid=7";

TEST(LogLineTest, Parts) {
  const LogLine line = ParseLogLine(kLine);
  EXPECT_EQ(line.time, "2026-11-23T22:00:00.123+0000");
  EXPECT_EQ(line.level, "info");
  EXPECT_EQ(line.text, "vm started sandbox=s1 pid=7");
  EXPECT_EQ(ParseLogLine("Started vmm-sandboxer.").text, "Started vmm-sandboxer.");
  EXPECT_EQ(ParseLogLine("Started vmm-sandboxer.").time, "");
  EXPECT_EQ(ParseLogLine("").text, "");
}

TEST(LogLineTest, IsAboutMatchesWholeFields) {
  EXPECT_TRUE(IsAbout(kLine, "s1"));
  EXPECT_FALSE(IsAbout(kLine, "s"));
  EXPECT_FALSE(IsAbout("x sandbox=s10", "s1"));
  EXPECT_FALSE(IsAbout("x parent_sandbox=s1", "s1"));
}

TEST(LogFileTest, FiltersOneSandbox) {
  char path[] = "/tmp/logs_test.XXXXXX";
  const int fd = ::mkstemp(path);
  ASSERT_GE(fd, 0);
  ::close(fd);
  std::ofstream(path) << kLine << "\n2026-11-23T22:00:01.000+0000 warn other sandbox=s2\n";
  std::vector<std::string> texts;
  EXPECT_TRUE(ReadLogFile(path, "s1", [&](const LogLine& l) { texts.push_back(l.text); }).ok());
  EXPECT_EQ(texts, std::vector<std::string>{"vm started sandbox=s1 pid=7"});
  ::unlink(path);
  EXPECT_TRUE(absl::IsNotFound(ReadLogFile(path, "s1", [](const LogLine&) {})));
}

TEST(JournalTest, OneWithoutTheDaemonSaysWhatElseThereIs) {
  char directory[] = "/tmp/logs_test.XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  for (const char* path : {static_cast<const char*>(directory), "/tmp/logs_test-none"}) {
    const absl::Status status = ReadJournal(
        "s1", [](const LogLine&) { FAIL(); }, path);
    EXPECT_TRUE(absl::IsUnavailable(status)) << path;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("--log-file")) << path;
  }
  ::rmdir(directory);
}

}  // namespace
}  // namespace magnetar::ctl
