#include "magnetar/streaming/opening.h"

#include <gtest/gtest.h>

#include "magnetar/streaming/frames.h"
#include "src/common/ttrpc/frame.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::streaming {
namespace {

std::string Frame(ttrpc::FrameType type, const std::string& body) {
  const auto header = ttrpc::EncodeHeader({static_cast<uint32_t>(body.size()), 1, type, 0});
  return std::string(header.data(), header.size()) + body;
}

std::string Request(const std::string& service, const std::string& method,
                    const std::string& payload = "") {
  ttrpc::Request request;
  request.set_service(service);
  request.set_method(method);
  request.set_payload(payload);
  return Frame(ttrpc::FrameType::kRequest, request.SerializeAsString());
}

std::string OpeningOf(const std::string& id) {
  return Request(kStreamingService, kStreamMethod) +
         Frame(ttrpc::FrameType::kData, StreamInitFrame(id));
}

TEST(Opening, OfAStreamInPiecesOfAnySize) {
  const std::string bytes = OpeningOf("c-stdout");
  for (size_t cut = 1; cut < bytes.size(); ++cut) {
    Opening opening;
    EXPECT_FALSE(opening.Add(bytes.substr(0, cut))) << cut;
    EXPECT_TRUE(opening.Add(bytes.substr(cut))) << cut;
    EXPECT_EQ(opening.stream_id(), "c-stdout");
    EXPECT_EQ(opening.bytes(), bytes);
  }
}

TEST(Opening, OfAnythingElse) {
  const std::string data = Frame(ttrpc::FrameType::kData, StreamInitFrame("c-stdout"));
  for (const std::string& bytes :
       {Request("containerd.task.v3.Task", "State"), Request(kStreamingService, "Other"), data,
        Frame(ttrpc::FrameType::kRequest, "\xff\xff"), std::string("\xff\xff\xff\xff garbage"),
        Request(kStreamingService, kStreamMethod) + Frame(ttrpc::FrameType::kData, "no name"),
        Request(kStreamingService, kStreamMethod) + Request(kStreamingService, kStreamMethod)}) {
    Opening opening;
    EXPECT_TRUE(opening.Add(bytes));
    EXPECT_FALSE(opening.stream_id().has_value());
  }
}

TEST(Opening, NeedsNoMoreThanItsBound) {
  const std::string large = Request("containerd.task.v3.Task", "Create", std::string(1 << 20, 'x'));
  Opening opening;
  EXPECT_FALSE(opening.Add(large.substr(0, Opening::kMaxBytes - 1)));
  EXPECT_TRUE(opening.Add(large.substr(Opening::kMaxBytes - 1, 1)));
  EXPECT_FALSE(opening.stream_id().has_value());
}

}  // namespace
}  // namespace magnetar::streaming
