// The accept loop, what bounds an attempt, and the servers of vm.vsock over a guest that does as
// it is told.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/un.h>

#include <boost/asio/detached.hpp>
#include <deque>

#include "absl/strings/str_cat.h"
#include "magnetar/event.h"
#include "magnetar/ports.h"
#include "magnetar/streaming/frames.h"
#include "src/supervisor/accept_loop.h"
#include "src/supervisor/async_test_util.h"
#include "src/supervisor/attempt.h"
#include "src/supervisor/hybrid_server.h"
#include "wire/ttrpc.pb.h"

namespace magnetar::supervisor {
namespace {

// An abstract address that the kernel chooses.
class Listener {
 public:
  explicit Listener(asio::io_context& context) : fd(context) {
    const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    address_.sun_family = AF_UNIX;
    length_ = sizeof(sa_family_t);
    EXPECT_EQ(::bind(socket, reinterpret_cast<sockaddr*>(&address_), length_), 0);
    EXPECT_EQ(::listen(socket, 10), 0);
    length_ = sizeof(address_);
    ::getsockname(socket, reinterpret_cast<sockaddr*>(&address_), &length_);
    fd.assign(socket);
  }
  UniqueFd Connect() const {
    UniqueFd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    EXPECT_EQ(::connect(client.get(), reinterpret_cast<const sockaddr*>(&address_), length_), 0);
    return client;
  }

  AsyncFd fd;

 private:
  sockaddr_un address_{};
  socklen_t length_ = 0;
};

class AcceptLoopTest : public testing::Test {
 protected:
  void Start(int limit) {
    limit_ = std::make_shared<ConnectionLimit>(context_.get_executor(), limit);
    auto serve = [this](UniqueFd fd) { accepted_.push_back(std::move(fd)); };
    asio::co_spawn(context_, AcceptLoop(listener_.fd, limit_, std::move(serve)),
                   [this](std::exception_ptr, absl::Status status) { ended_ = status; });
  }

  // UBSan, which looks at memory through a pipe, then reports objects that it sees for the first
  // time as broken: "memory cannot be printed" is no fault of theirs.
  void PollWithoutDescriptors() {
    rlimit usual;
    ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &usual), 0);
    const rlimit none{.rlim_cur = 3, .rlim_max = usual.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
    for (int i = 0; i < 10; ++i) {
      context_.restart();
      context_.poll();
    }
    ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &usual), 0);
  }

  asio::io_context context_;
  Listener listener_{context_};
  std::shared_ptr<ConnectionLimit> limit_;
  std::vector<UniqueFd> accepted_;
  std::optional<absl::Status> ended_;
};

TEST_F(AcceptLoopTest, GoesOnAfterAShortageOfDescriptors) {
  Start(10);
  UniqueFd first = listener_.Connect();
  RunUntil(context_, [this] { return accepted_.size() == 1; });
  UniqueFd second = listener_.Connect();
  PollWithoutDescriptors();
  EXPECT_EQ(accepted_.size(), 1u);
  EXPECT_FALSE(ended_.has_value());
  RunUntil(context_, [this] { return accepted_.size() == 2; });
}

TEST_F(AcceptLoopTest, AReleaseEndsTheWait) {
  Start(10);
  UniqueFd first = listener_.Connect();
  RunUntil(context_, [this] { return accepted_.size() == 1; });
  UniqueFd second = listener_.Connect();
  PollWithoutDescriptors();
  limit_->Release();
  RunUntil(context_, [this] { return accepted_.size() == 2; });
}

TEST_F(AcceptLoopTest, EndsWithItsListener) {
  Start(10);
  context_.poll();
  listener_.fd.close();
  RunUntil(context_, [this] { return ended_.has_value(); });
  EXPECT_TRUE(ended_->ok());
}

TEST_F(AcceptLoopTest, AListenerThatBreaksIsTold) {
  // What is no listening socket accepts nothing, ever.
  auto [near, far] = SocketPair();
  AsyncFd broken(context_, near.release());
  auto limit = std::make_shared<ConnectionLimit>(context_.get_executor(), 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      Await(context_, AcceptLoop(broken, limit, [](const UniqueFd&) {}))));
}

Co<absl::StatusOr<int>> Forever(Gate& gate) {
  auto wait = gate.Wait();
  co_await std::move(wait);
  co_return 1;
}

Co<absl::StatusOr<int>> AtOnce() { co_return 7; }

TEST(Attempt, IsBounded) {
  asio::io_context context;
  Gate never(context.get_executor());
  EXPECT_EQ(Await(context, Bounded({.limit = std::chrono::hours(1)}, AtOnce())).value(), 7);
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      Await(context, Bounded({.limit = std::chrono::milliseconds(1)}, Forever(never))).status()));
  auto [near, far] = SocketPair();
  AsyncFd client(context, near.release());
  far.reset();
  EXPECT_TRUE(
      absl::IsUnavailable(Await(context, Bounded({.client = &client}, Forever(never))).status()));
}

// A guest whose answers the test gives.
class FakeLink : public GuestLink {
 public:
  explicit FakeLink(const asio::any_io_executor& executor) : changed_(executor) {}

  Co<absl::Status> Ready() override { co_return absl::OkStatus(); }
  Co<absl::StatusOr<UniqueFd>> Connect(uint32_t) override {
    ++connecting;
    struct Leave {
      int& count;
      ~Leave() { --count; }
    } leave{connecting};
    while (answers.empty()) {
      auto wait = changed_.Wait();
      co_await std::move(wait);
    }
    UniqueFd answer = std::move(answers.front());
    answers.pop_front();
    co_return answer;
  }
  void Close() override {}

  void Answer(UniqueFd fd) {
    answers.push_back(std::move(fd));
    changed_.NotifyAll();
  }

  int connecting = 0;
  std::deque<UniqueFd> answers;

 private:
  Event changed_;
};

class HybridServerTest : public testing::Test {
 protected:
  HybridServerTest() {
    asio::co_spawn(context_,
                   ServeHybrid(listener_.fd,
                               {.link = link_,
                                .ready = &ready_,
                                .ready_or_ending = &ready_or_ending_,
                                .trim = &trim_,
                                .outputs = std::make_shared<Outputs>(context_.get_executor(), link_,
                                                                     [](const std::string&) {}),
                                .kills = &kills_},
                               {.connections = 10, .others = 2}),
                   [](std::exception_ptr, const absl::Status&) {});
  }
  void Knock() {
    ready_.Open();
    ready_or_ending_.Open();
  }
  UniqueFd Ask(uint32_t port = 7) {
    UniqueFd client = listener_.Connect();
    const std::string line = absl::StrCat("CONNECT ", port, "\n");
    EXPECT_EQ(::send(client.get(), line.data(), line.size(), 0), static_cast<ssize_t>(line.size()));
    return client;
  }
  // What the client gets, until `done` of it.
  template <typename Done>
  std::string Read(const UniqueFd& client, Done done) {
    std::string text;
    bool eof = false;
    RunUntil(context_, [&] {
      text += ReadAvailable(client.get(), &eof);
      return done(text, eof);
    });
    return text;
  }

  asio::io_context context_;
  Listener listener_{context_};
  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>(context_.get_executor());
  Gate ready_{context_.get_executor()};
  Gate ready_or_ending_{context_.get_executor()};
  IdleTrim trim_{context_.get_executor()};
  KillWatch kills_{std::chrono::seconds(60), [](const std::string&) {}};
};

TEST_F(HybridServerTest, ConnectsOnceTheGuestIsReady) {
  auto [near, far] = SocketPair();
  UniqueFd client = Ask();
  for (int i = 0; i < 10; ++i) {
    context_.restart();
    context_.poll();
  }
  EXPECT_EQ(link_->connecting, 0);
  Knock();
  link_->Answer(std::move(near));
  ::send(far.get(), "hello", 5, 0);
  EXPECT_EQ(Read(client, [](const std::string& text, bool) { return text.size() >= 10; }),
            "OK 7\nhello");
}

TEST_F(HybridServerTest, AClientThatLeavesIsNotConnected) {
  Knock();
  UniqueFd client = Ask();
  RunUntil(context_, [this] { return link_->connecting == 1; });
  client.reset();
  RunUntil(context_, [this] { return link_->connecting == 0; });
}

// However many execs there are, the guest can be asked whether it lives.
TEST_F(HybridServerTest, TheDaemonsPortsHaveRoomOfTheirOwn) {
  Knock();
  const UniqueFd first = Ask();
  UniqueFd second = Ask();
  RunUntil(context_, [this] { return link_->connecting == 2; });
  EXPECT_EQ(Read(Ask(), [](const std::string&, bool eof) { return eof; }), "");
  const UniqueFd beat = Ask(kHeartbeatPort);
  RunUntil(context_, [this] { return link_->connecting == 3; });
  second.reset();
  RunUntil(context_, [this] { return link_->connecting == 2; });
  const UniqueFd third = Ask();
  RunUntil(context_, [this] { return link_->connecting == 3; });
}

std::string OpeningOf(const std::string& service, const std::string& stream_id) {
  ttrpc::Request request;
  request.set_service(service);
  request.set_method("Stream");
  std::string out;
  for (const auto& [type, body] : {std::pair(1, request.SerializeAsString()),
                                   std::pair(3, streaming::StreamInitFrame(stream_id))}) {
    out += {0, 0, 0, static_cast<char>(body.size()), 0, 0, 0, 1, static_cast<char>(type), 0};
    out += body;
  }
  return out;
}

TEST_F(HybridServerTest, WhatComesForTheTaskPortIsPassedOnWhole) {
  Knock();
  for (const std::string& opening :
       {OpeningOf("containerd.task.v3.Task", "c-stdout"),
        OpeningOf(streaming::kStreamingService, "c-stdin"), std::string(100000, 'x')}) {
    const UniqueFd client = Ask(kTaskPort);
    EXPECT_EQ(Read(client, [](const std::string& text, bool) { return text.size() >= 8; }),
              "OK 1024\n");
    auto [near, far] = SocketPair();
    ASSERT_EQ(::send(client.get(), opening.data(), opening.size(), 0),
              static_cast<ssize_t>(opening.size()));
    link_->Answer(std::move(near));
    EXPECT_TRUE(Read(far, [&](const std::string& text, bool) {
                  return text.size() >= opening.size();
                }) == opening);
  }
}

TEST_F(HybridServerTest, AnOutputsStreamIsServedHere) {
  Knock();
  const UniqueFd client = Ask(kTaskPort);
  const std::string opening = OpeningOf(streaming::kStreamingService, "c-stdout");
  ASSERT_EQ(::send(client.get(), opening.data(), opening.size(), 0),
            static_cast<ssize_t>(opening.size()));
  // More than the first answer: the stream has been accepted.
  Read(client, [](const std::string& text, bool) { return text.size() > 8; });
  auto [near, far] = SocketPair();
  link_->Answer(std::move(near));
  EXPECT_EQ(Read(far, [](const std::string& text, bool) { return text.size() >= 9; }),
            "\x08"
            "c-stdout");
}

TEST_F(HybridServerTest, WhoWaitsForAGuestThatEndsIsSentAway) {
  UniqueFd client = Ask();
  for (int i = 0; i < 10; ++i) {
    context_.restart();
    context_.poll();
  }
  ready_or_ending_.Open();
  EXPECT_EQ(Read(client, [](const std::string&, bool eof) { return eof; }), "");
  EXPECT_EQ(link_->connecting, 0);
}

}  // namespace
}  // namespace magnetar::supervisor
