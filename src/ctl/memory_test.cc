#include "src/ctl/memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace magnetar::ctl {
namespace {

TEST(MemoryTest, ParsesARollup) {
  auto memory = ParseSmapsRollup(
      "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:   2048 kB\nPss:    1024 kB\nPss_Dirty: 3 "
      "kB\n");
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->pss, 1024u << 10);
  EXPECT_EQ(memory->rss, 2048u << 10);
  EXPECT_FALSE(ParseSmapsRollup("").ok());
}

TEST(MemoryTest, OfThisProcess) {
  auto memory = MemoryOf(::getpid());
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_GT(memory->rss, 0u);
  EXPECT_TRUE(absl::IsNotFound(MemoryOf(0x3fffffff).status()));
}

TEST(MemoryTest, Formats) {
  EXPECT_EQ(FormatBytes(512), "0.5 KiB");
  EXPECT_EQ(FormatBytes(35 << 20), "35.0 MiB");
  EXPECT_EQ(FormatBytes(uint64_t{3} << 29), "1.50 GiB");
}

}  // namespace
}  // namespace magnetar::ctl
