#include "src/supervisor/kill_watch.h"

#include <gtest/gtest.h>

#include <csignal>

#include "containerd/task.pb.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::supervisor {
namespace {

using std::chrono::seconds;

std::string Frame(int type, uint32_t stream_id, const std::string& body) {
  const auto size = static_cast<uint32_t>(body.size());
  std::string out;
  for (const uint32_t word : {size, stream_id}) {
    for (const int shift : {24, 16, 8, 0}) out += static_cast<char>(word >> shift);
  }
  out += static_cast<char>(type);
  out += '\0';
  return out + body;
}

template <typename Request>
std::string Call(uint32_t stream_id, const std::string& method, const Request& request) {
  ttrpc::Request call;
  call.set_service("containerd.task.v3.Task");
  call.set_method(method);
  call.set_payload(request.SerializeAsString());
  return Frame(1, stream_id, call.SerializeAsString());
}

std::string Kill(uint32_t stream_id, const std::string& id, int signal = SIGKILL,
                 const std::string& exec = "") {
  containerd::task::v3::KillRequest request;
  request.set_id(id);
  request.set_exec_id(exec);
  request.set_signal(static_cast<uint32_t>(signal));
  return Call(stream_id, "Kill", request);
}

std::string Wait(uint32_t stream_id, const std::string& id, const std::string& exec = "") {
  containerd::task::v3::WaitRequest request;
  request.set_id(id);
  request.set_exec_id(exec);
  return Call(stream_id, "Wait", request);
}

class KillWatchTest : public testing::Test {
 protected:
  void KilledAt(int second) {
    watch_.Killed("c", KillWatch::Clock::time_point() + seconds(second));
  }

  std::vector<std::string> said_;
  KillWatch watch_{seconds(60), [this](const std::string& what) { said_.push_back(what); }};
};

TEST_F(KillWatchTest, ASecondSigkillAfterAllThatTime) {
  watch_.Waits("c");
  KilledAt(0);
  KilledAt(59);
  EXPECT_TRUE(said_.empty());
  KilledAt(61);
  ASSERT_EQ(said_.size(), 1u);
  EXPECT_EQ(
      said_[0],
      "the guest does not end container c: it was sent SIGKILL 61 s ago and is sent it again");
}

// containerd kills once more after every end, and may be kept from Delete by a reader of its own.
TEST_F(KillWatchTest, OnlyWhileTheEndIsWaitedFor) {
  KilledAt(0);
  KilledAt(100);
  watch_.Waits("c");
  KilledAt(200);
  watch_.Ended("c");
  watch_.Waited("c");
  KilledAt(300);
  KilledAt(400);
  EXPECT_TRUE(said_.empty());
  // A new containerd waits anew.
  watch_.Waits("c");
  watch_.Waits("c");
  KilledAt(500);
  watch_.Waited("c");
  KilledAt(600);
  EXPECT_EQ(said_.size(), 1u);
}

TEST(KillWatch, NoPatienceIsForEver) {
  KillWatch never(seconds(0), [](const std::string&) { FAIL(); });
  never.Waits("c");
  for (const int at : {0, 100000}) {
    never.Killed("c", KillWatch::Clock::time_point() + seconds(at));
  }
}

// As the bytes of a connection pass, in pieces and among others.
class ListenerTest : public testing::Test {
 protected:
  void FromA(const std::string& bytes) {
    for (const char byte : bytes) listener_->FromA({&byte, 1});
  }
  void FromB(const std::string& bytes) {
    for (const char byte : bytes) listener_->FromB({&byte, 1});
  }
  // As if the SIGKILL had come long ago.
  void KilledLongAgo(const std::string& id) {
    watch_.Killed(id, KillWatch::Clock::now() - seconds(100));
  }

  std::vector<std::string> said_;
  KillWatch watch_{seconds(60), [this](const std::string& what) { said_.push_back(what); }};
  std::unique_ptr<RelayListener> listener_ = watch_.Listen();
};

TEST_F(ListenerTest, HearsWaitsAndKills) {
  FromA(Frame(1, 1, std::string(100000, 'x')) + Frame(3, 1, "data") + Wait(3, "c"));
  KilledLongAgo("c");
  FromB(Frame(2, 1, std::string(100000, 'x')) + Frame(3, 3, "data"));
  FromA(Kill(5, "c", SIGTERM) + Kill(7, "c", SIGKILL, "exec") + Kill(9, "d"));
  EXPECT_TRUE(said_.empty());
  FromA(Kill(11, "c"));
  EXPECT_EQ(said_.size(), 1u);
}

TEST_F(ListenerTest, AnAnsweredWaitIsAnEnd) {
  FromA(Wait(3, "c") + Wait(5, "c", "exec"));
  KilledLongAgo("c");
  FromB(Frame(2, 3, "ended"));
  FromA(Kill(7, "c") + Kill(9, "c"));
  EXPECT_TRUE(said_.empty());
}

TEST_F(ListenerTest, AnExecsEndIsNotTheContainers) {
  FromA(Wait(3, "c") + Wait(5, "c", "exec"));
  KilledLongAgo("c");
  FromB(Frame(2, 5, "ended"));
  FromA(Kill(7, "c"));
  EXPECT_EQ(said_.size(), 1u);
}

TEST_F(ListenerTest, NobodyWaitsOnAConnectionThatIsGone) {
  FromA(Wait(3, "c"));
  KilledLongAgo("c");
  listener_ = watch_.Listen();
  FromA(Kill(1, "c"));
  EXPECT_TRUE(said_.empty());
}

TEST_F(ListenerTest, WhatIsNoTtrpcIsNotFollowed) {
  FromA(Wait(3, "c"));
  KilledLongAgo("c");
  FromA(std::string(100, '\xff'));
  FromA(Kill(5, "c"));
  EXPECT_TRUE(said_.empty());
}

}  // namespace
}  // namespace magnetar::supervisor
