#include "src/supervisor/kill_watch.h"

#include <gtest/gtest.h>

#include <csignal>
#include <optional>

#include "containerd/task.pb.h"
#include "src/supervisor/async_test_util.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::supervisor {
namespace {

using std::chrono::seconds;
constexpr char kTask[] = "containerd.task.v3.Task";

class KillWatchTest : public testing::Test {
 protected:
  void Kill(const std::string& id, int at, int signal = SIGKILL, const std::string& exec = "") {
    containerd::task::v3::KillRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    request.set_signal(static_cast<uint32_t>(signal));
    watch_.Heard(kTask, "Kill", request.SerializeAsString(), start_ + seconds(at));
  }
  void Delete(const std::string& id, const std::string& exec = "") {
    containerd::task::v3::DeleteRequest request;
    request.set_id(id);
    request.set_exec_id(exec);
    watch_.Heard(kTask, "Delete", request.SerializeAsString(), start_);
  }

  const KillWatch::Clock::time_point start_{};
  std::vector<std::string> said_;
  KillWatch watch_{seconds(60), [this](const std::string& what) { said_.push_back(what); }};
};

TEST_F(KillWatchTest, ASecondSigkillAfterAllThatTime) {
  Kill("c", 0);
  Kill("c", 59);
  EXPECT_TRUE(said_.empty());
  Kill("c", 61);
  ASSERT_EQ(said_.size(), 1u);
  EXPECT_EQ(
      said_[0],
      "the guest does not end container c: it was sent SIGKILL 61 s ago and is sent it again");
}

TEST_F(KillWatchTest, NothingElseCounts) {
  Kill("c", 0, SIGTERM);
  Kill("c", 100, SIGKILL, "exec");
  Kill("c", 200, SIGTERM);
  Kill("d", 300);
  Kill("c", 400);
  Delete("d");
  Kill("d", 500);
  watch_.Heard("another.Service", "Kill", "", start_ + seconds(600));
  watch_.Heard(kTask, "Kill", "\xff\xff", start_ + seconds(700));
  EXPECT_TRUE(said_.empty());
  // An exec's end is not the container's.
  Delete("c", "exec");
  Kill("c", 800);
  EXPECT_EQ(said_.size(), 1u);
}

TEST_F(KillWatchTest, RemembersSoMany) {
  Kill("first", 0);
  for (size_t i = 0; i < KillWatch::kMaxContainers; ++i) Kill("c" + std::to_string(i), 0);
  Kill("first", 100);
  EXPECT_TRUE(said_.empty());
  Kill("c100", 100);
  EXPECT_EQ(said_.size(), 1u);
}

TEST(KillWatch, NoPatienceIsForEver) {
  KillWatch never(seconds(0), [](const std::string&) { FAIL(); });
  containerd::task::v3::KillRequest request;
  request.set_id("c");
  request.set_signal(SIGKILL);
  for (const int at : {0, 100000}) {
    never.Heard(kTask, "Kill", request.SerializeAsString(),
                KillWatch::Clock::time_point() + seconds(at));
  }
}

// As the bytes of a connection pass, in pieces and among others.
TEST(KillWatch, HearsWhatIsRelayed) {
  std::vector<std::string> said;
  KillWatch watch(seconds(1), [&](const std::string& what) { said.push_back(what); });
  const auto frame = [](int type, const std::string& body) {
    std::string out = {static_cast<char>(body.size() >> 24),
                       static_cast<char>(body.size() >> 16),
                       static_cast<char>(body.size() >> 8),
                       static_cast<char>(body.size()),
                       0,
                       0,
                       0,
                       1,
                       static_cast<char>(type),
                       0};
    return out + body;
  };
  containerd::task::v3::KillRequest kill;
  kill.set_id("c");
  kill.set_signal(SIGKILL);
  ttrpc::Request request;
  request.set_service(kTask);
  request.set_method("Kill");
  request.set_payload(kill.SerializeAsString());
  const std::string bytes =
      frame(1, std::string(100000, 'x')) + frame(3, "data") + frame(1, request.SerializeAsString());
  watch.Heard(kTask, "Kill", kill.SerializeAsString(), KillWatch::Clock::now() - seconds(10));
  const auto listener = watch.Listen();
  for (const char byte : bytes) listener->Heard({&byte, 1});
  EXPECT_EQ(said.size(), 1u);
  // What is no ttrpc is passed on unheard.
  const auto other = watch.Listen();
  other->Heard(std::string(100, '\xff'));
  other->Heard(bytes);
  EXPECT_EQ(said.size(), 1u);
}

TEST(KillWatch, AGuestThatReadsNothingIsNotWaitedForEither) {
  asio::io_context context;
  std::vector<std::string> said;
  KillWatch watch(seconds(1), [&](const std::string& what) { said.push_back(what); });
  auto [client, a] = SocketPair();
  auto [b, guest] = SocketPair();
  bool done = false;
  asio::co_spawn(context, Relay(std::move(a), std::move(b), watch.Listen()),
                 [&](const std::exception_ptr&) { done = true; });
  const std::string call(65536, '\xff');
  RunUntil(context, [&] {
    (void)!::send(client.get(), call.data(), call.size(), 0);
    return !said.empty();
  });
  EXPECT_EQ(said[0], "the guest has read none of containerd's calls for 1 s");
  guest.reset();
  client.reset();
  RunUntil(context, [&] { return done; });
}

}  // namespace
}  // namespace magnetar::supervisor
