#include "src/supervisor/ring.h"

#include <gtest/gtest.h>

#include <random>

namespace magnetar::supervisor {
namespace {

TEST(Ring, KeepsTheNewest) {
  Ring ring(8);
  ring.Append("abc");
  EXPECT_EQ(ring.Contents(), "abc");
  ring.Append("defgh");
  EXPECT_EQ(ring.Contents(), "abcdefgh");
  ring.Append("ij");
  EXPECT_EQ(ring.Contents(), "cdefghij");
  ring.Append("0123456789");
  EXPECT_EQ(ring.Contents(), "23456789");
  EXPECT_FALSE(ring.ends_in_newline());
}

TEST(Ring, AgreesWithASimpleOne) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const size_t capacity = 1 + random() % 40;
    Ring ring(capacity);
    std::string all;
    for (int i = 0; i < 30; ++i) {
      const std::string piece(random() % 60, static_cast<char>('a' + i % 26));
      ring.Append(piece);
      all += piece;
      const std::string expected = all.size() > capacity ? all.substr(all.size() - capacity) : all;
      ASSERT_EQ(ring.Contents(), expected);
    }
  }
}

TEST(Ring, TailIsWholeLinesWithoutControlCharacters) {
  Ring ring(1000);
  ring.Append("one\r\ntwo\n\x1b[31mthree\nfour\n\n");
  EXPECT_EQ(ring.Tail(2, 100), "[31mthree\nfour");
  EXPECT_EQ(ring.Tail(100, 100), "one\ntwo\n[31mthree\nfour");
  EXPECT_EQ(ring.Tail(100, 3), "our");
  EXPECT_EQ(Ring(10).Tail(3, 100), "");
}

TEST(NamedLines, PutsTheNameBeforeEachLine) {
  Ring ring(1000);
  NamedLines lines(ring, "virtiofsd");
  lines.Append("par");
  EXPECT_EQ(ring.Contents(), "");
  lines.Append("tial\r\nnext\nrest");
  ring.Append("login: ");
  lines.Flush();
  EXPECT_EQ(ring.Contents(), "virtiofsd: partial\nvirtiofsd: next\nlogin: \nvirtiofsd: rest\n");
}

TEST(NamedLines, BoundsALineThatNeverEnds) {
  Ring ring(100000);
  NamedLines lines(ring, "x");
  for (int i = 0; i < 100; ++i) lines.Append(std::string(1000, 'a'));
  lines.Append("\nb\n");
  EXPECT_EQ(ring.Contents(), "x: " + std::string(1024, 'a') + "\nx: b\n");
}

}  // namespace
}  // namespace magnetar::supervisor
