#include "src/common/ttrpc/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "src/common/ttrpc/wire.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::ttrpc {
namespace {

using ::testing::ElementsAre;

std::string Bytes(std::initializer_list<int> bytes) {
  std::string out;
  for (const int b : bytes) out.push_back(static_cast<char>(b));
  return out;
}

std::string Encoded(const FrameHeader& header) {
  const auto bytes = EncodeHeader(header);
  return std::string(bytes.data(), bytes.size());
}

TEST(FrameTest, HeaderBytes) {
  EXPECT_EQ(Encoded({0x010203, 0x0a0b0c0d, FrameType::kData, 0x05}),
            Bytes({0, 1, 2, 3, 0x0a, 0x0b, 0x0c, 0x0d, 3, 5}));
  EXPECT_EQ(Encoded({0, 1, FrameType::kRequest, kRemoteOpen}),
            Bytes({0, 0, 0, 0, 0, 0, 0, 1, 1, 2}));
}

// A whole unary exchange as ttrpc puts it on the wire.
TEST(FrameTest, RequestAndResponseBodies) {
  Request request;
  request.set_service("s");
  request.set_method("m");
  request.set_payload("p");
  request.set_timeout_nano(1);
  KeyValue* pair = request.add_metadata();
  pair->set_key("k");
  pair->set_value("v");
  EXPECT_EQ(request.SerializeAsString(), Bytes({0x0a, 1, 's', 0x12, 1, 'm', 0x1a, 1, 'p', 0x20, 1,
                                                0x2a, 6, 0x0a, 1, 'k', 0x12, 1, 'v'}));
  EXPECT_EQ(EncodeResponse(std::string("ok"), 100), Bytes({0x12, 2, 'o', 'k'}));
  EXPECT_EQ(EncodeResponse(absl::NotFoundError("no"), 100),
            Bytes({0x0a, 6, 8, 5, 0x12, 2, 'n', 'o'}));
  EXPECT_EQ(EncodeResponse(std::string(), 100), "");
}

TEST(FrameTest, DecodesResponses) {
  EXPECT_EQ(*DecodeResponse(Bytes({0x12, 2, 'o', 'k'})), "ok");
  EXPECT_EQ(*DecodeResponse(""), "");
  EXPECT_EQ(DecodeResponse(Bytes({0x0a, 6, 8, 5, 0x12, 2, 'n', 'o'})).status(),
            absl::NotFoundError("no"));
  // A code that no one defined.
  EXPECT_EQ(DecodeResponse(Bytes({0x0a, 2, 8, 99})).status().code(), absl::StatusCode::kUnknown);
  EXPECT_EQ(DecodeResponse(Bytes({0xff})).status().code(), absl::StatusCode::kInternal);
}

TEST(FrameTest, ResponsesNeverExceedTheFrame) {
  const std::string big(1000, 'x');
  const auto decoded = DecodeResponse(EncodeResponse(big, 500));
  EXPECT_EQ(decoded.status().code(), absl::StatusCode::kResourceExhausted);
  const auto error = EncodeResponse(absl::InternalError(std::string(1 << 20, 'x')), 4 << 20);
  EXPECT_LT(error.size(), 70u << 10);
}

TEST(FrameTest, MessagesAreValidUtf8) {
  EXPECT_EQ(ValidUtf8("plain", 100), "plain");
  EXPECT_EQ(ValidUtf8("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80", 100),
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(ValidUtf8("a\xff\xc3", 100), "a??");
  EXPECT_EQ(ValidUtf8("\xc0\x80", 100), "??");            // overlong
  EXPECT_EQ(ValidUtf8("\xe0\x80\x80", 100), "???");       // overlong
  EXPECT_EQ(ValidUtf8("\xed\xa0\x80", 100), "???");       // surrogate
  EXPECT_EQ(ValidUtf8("\xf4\x90\x80\x80", 100), "????");  // beyond U+10FFFF
  EXPECT_EQ(ValidUtf8("\xe2\x82\xac\xe2\x82\xac", 5), "\xe2\x82\xac");
  EXPECT_EQ(ValidUtf8(std::string("\0", 1), 5), std::string("\0", 1));
}

struct Parsed {
  std::vector<std::string> bodies;
  std::vector<bool> oversized;
  absl::Status status;
};

// Feeds `wire` in pieces of `piece` bytes.
Parsed Parse(const std::string& wire, size_t piece, size_t max_body) {
  FrameParser parser(max_body);
  Parsed out;
  for (size_t at = 0; at < wire.size(); at += piece) {
    std::string_view input = std::string_view(wire).substr(at, piece);
    while (!input.empty()) {
      auto frame = parser.Next(input);
      if (!frame.ok()) {
        out.status = frame.status();
        return out;
      }
      if (!frame->has_value()) break;
      out.bodies.push_back((*frame)->body);
      out.oversized.push_back((*frame)->oversized);
    }
  }
  if (parser.InFrame()) out.status = absl::DataLossError("in frame");
  return out;
}

TEST(FrameParserTest, CutsAnywhere) {
  const std::string wire = Encoded({3, 1, FrameType::kRequest, 0}) + "abc" +
                           Encoded({0, 3, FrameType::kData, 5}) +
                           Encoded({1, 5, FrameType::kResponse, 0}) + "z";
  for (size_t piece = 1; piece <= wire.size(); ++piece) {
    const Parsed parsed = Parse(wire, piece, 10);
    EXPECT_TRUE(parsed.status.ok());
    EXPECT_THAT(parsed.bodies, ElementsAre("abc", "", "z")) << piece;
  }
}

TEST(FrameParserTest, SkipsOversizedBodies) {
  const std::string wire = Encoded({11, 1, FrameType::kData, 0}) + "0123456789a" +
                           Encoded({10, 1, FrameType::kData, 0}) + "0123456789";
  for (size_t piece = 1; piece <= wire.size(); ++piece) {
    const Parsed parsed = Parse(wire, piece, 10);
    EXPECT_THAT(parsed.bodies, ElementsAre("", "0123456789"));
    EXPECT_THAT(parsed.oversized, ElementsAre(true, false));
  }
}

TEST(FrameParserTest, RefusesWhatCannotBeFollowed) {
  EXPECT_FALSE(Parse(Bytes({0, 0, 0, 0, 0, 0, 0, 1, 0, 0}), 100, 10).status.ok());
  EXPECT_FALSE(Parse(Bytes({0, 0, 0, 0, 0, 0, 0, 1, 4, 0}), 100, 10).status.ok());
  EXPECT_FALSE(Parse(Bytes({1, 0, 0, 0, 0, 0, 0, 1, 1, 0}), 100, 10).status.ok());
  EXPECT_TRUE(Parse(Bytes({0, 0, 0, 0, 0, 0, 0, 1, 3, 0xff}), 100, 10).status.ok());
}

TEST(FrameParserTest, KnowsWhetherItIsInsideAFrame) {
  EXPECT_EQ(Parse(Bytes({0, 0}), 1, 10).status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Parse(Encoded({2, 1, FrameType::kData, 0}) + "a", 1, 10).status.code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace magnetar::ttrpc
