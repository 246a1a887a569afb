// Connections of magnetar/output.h: over a multiplexer that is handed what they carry, over one
// that is not, and over a socket of another kind.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <csignal>
#include <optional>
#include <thread>

#include "guest-agent/streaming/stream_registry.h"
#include "guest-agent/testing/loop.h"
#include "magnetar/descriptor_message.h"
#include "magnetar/mux.h"
#include "magnetar/output.h"
#include "magnetar/ports.h"

namespace magnetar::guest {
namespace {

using testing::Frames;
using testing::Loop;
using testing::OpenStdio;
using testing::ReadOutput;
using testing::Wire;

using Clock = std::chrono::steady_clock;

enum class Kind { kMux, kMuxWithoutSources, kSocket };

std::pair<UniqueFd, UniqueFd> UnixPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// Stands for vsock: what it has in common with it is not to carry descriptors.
std::pair<UniqueFd, UniqueFd> InetPair() {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener.get(), generic, size) != 0 || ::listen(listener.get(), 1) != 0 ||
      ::getsockname(listener.get(), generic, &size) != 0) {
    std::abort();
  }
  UniqueFd near(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(near.get(), generic, size) != 0) std::abort();
  UniqueFd far(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  ::fcntl(near.get(), F_SETFL, O_NONBLOCK);
  return {std::move(near), std::move(far)};
}

class OutputConnectionTest : public ::testing::TestWithParam<Kind> {
 protected:
  OutputConnectionTest() {
    ::signal(SIGPIPE, SIG_IGN);
    int fds[2];
    if (::pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
    read_.reset(fds[0]);
    write_.reset(fds[1]);
    if (GetParam() == Kind::kSocket) return;
    if (GetParam() == Kind::kMuxWithoutSources) registry_.KeepSources();
    auto [host, guest] = UnixPair();
    mux_ = mux::Host::Create(std::move(host));
    guest_mux_ = mux::Guest::Create(std::move(guest), [this](uint32_t, UniqueFd stream) {
      Serve(std::move(stream));
      return absl::OkStatus();
    });
    asio::co_spawn(loop_.context, mux_->Run(), asio::detached);
    asio::co_spawn(loop_.context, guest_mux_->Run(), asio::detached);
  }

  void Serve(UniqueFd connection) {
    ++serving_;
    asio::co_spawn(loop_.context, registry_.ServeOutput(std::move(connection)),
                   [this](const std::exception_ptr&, absl::Status status) {
                     --serving_;
                     status_ = std::move(status);
                   });
  }

  // The host's end, which has named a stream.
  UniqueFd Open(const std::string& id) {
    UniqueFd host;
    if (GetParam() != Kind::kSocket) {
      auto connected = loop_.Run(mux_->Connect(kOutputPort));
      EXPECT_TRUE(connected.ok()) << connected.status();
      host = *std::move(connected);
      ::fcntl(host.get(), F_SETFL, O_NONBLOCK);
    } else {
      auto [near, far] = InetPair();
      host = std::move(near);
      Serve(std::move(far));
    }
    const std::string name = std::string(1, static_cast<char>(id.size())) + id;
    EXPECT_EQ(::send(host.get(), name.data(), name.size(), 0), static_cast<ssize_t>(name.size()));
    return host;
  }

  // A process has the stream that `host` has named, and writes to write_.
  std::shared_ptr<streaming::OutputStream> Run(const UniqueFd& host) {
    auto output = registry_.ClaimOutput("c-stdout");
    EXPECT_TRUE(output.ok()) << output.status();
    (*output)->SetSource(std::move(read_));
    EXPECT_EQ(Read(host, 1), std::string(1, kOutputClaimed));
    return *std::move(output);
  }

  // What comes until `size` of it are there, or the end.
  std::string Read(const UniqueFd& host, size_t size, bool* ended = nullptr) {
    std::string out;
    loop_.Until([&] {
      char buffer[65536];
      const ssize_t n = ::recv(host.get(), buffer, std::min(sizeof(buffer), size - out.size()), 0);
      if (n > 0) out.append(buffer, static_cast<size_t>(n));
      if (n == 0 && ended != nullptr) *ended = true;
      return n == 0 || (n < 0 && errno != EAGAIN) || out.size() == size;
    });
    return out;
  }
  bool Ended(const UniqueFd& host) {
    bool ended = false;
    return Read(host, 1, &ended).empty() && ended;
  }

  Loop loop_;
  StreamRegistry registry_{loop_.executor()};
  std::shared_ptr<mux::Host> mux_;
  std::shared_ptr<mux::Guest> guest_mux_;
  UniqueFd read_, write_;
  int serving_ = 0;
  absl::Status status_;
};

INSTANTIATE_TEST_SUITE_P(By, OutputConnectionTest,
                         ::testing::Values(Kind::kMux, Kind::kMuxWithoutSources, Kind::kSocket),
                         [](const auto& info) {
                           if (info.param == Kind::kSocket) return "socket";
                           return info.param == Kind::kMux ? "mux" : "mux_without_sources";
                         });

TEST_P(OutputConnectionTest, CarriesAllOfItAndTheEnd) {
  const UniqueFd host = Open("c-stdout");
  const auto output = Run(host);
  std::string data;
  for (int i = 0; data.size() < 3 << 20; ++i) data += std::to_string(i) + " ";
  std::thread writer([&] {
    asio::io_context own;
    asio::posix::stream_descriptor out(own, write_.release());
    boost::system::error_code error;
    asio::write(out, asio::buffer(data), error);
    EXPECT_FALSE(error) << error.message();
  });
  EXPECT_TRUE(Read(host, data.size()) == data);
  writer.join();
  EXPECT_TRUE(Ended(host));
}

TEST_P(OutputConnectionTest, WhatWasReadBeforeComesFirst) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  ASSERT_EQ(::write(write_.get(), "early ", 6), 6);
  loop_.Settle();
  const UniqueFd host = Open("c-stdout");
  EXPECT_EQ(Read(host, 1), std::string(1, kOutputClaimed));
  loop_.Settle();
  ASSERT_EQ(::write(write_.get(), "late", 4), 4);
  write_.reset();
  EXPECT_EQ(Read(host, 10), "early late");
  EXPECT_TRUE(Ended(host));
}

TEST_P(OutputConnectionTest, CountsAsSentOnceTheHostCloses) {
  UniqueFd host = Open("c-stdout");
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  write_.reset();
  EXPECT_EQ(Read(host, 1), std::string(1, kOutputClaimed));
  EXPECT_TRUE(Ended(host));
  loop_.Settle();
  EXPECT_FALSE((*output)->delivered());
  host.reset();
  loop_.Until([&] { return (*output)->delivered(); });
  loop_.Run((*output)->WaitDelivered(Clock::now(), Clock::time_point::max()));
  // Whoever comes later gets the end again.
  const UniqueFd again = Open("c-stdout");
  EXPECT_EQ(Read(again, 1), std::string(1, kOutputClaimed));
  EXPECT_TRUE(Ended(again));
}

TEST_P(OutputConnectionTest, AHostThatGoesMidwayLeavesTheRestToTheNext) {
  UniqueFd host = Open("c-stdout");
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  ASSERT_EQ(::write(write_.get(), "one", 3), 3);
  EXPECT_EQ(Read(host, 4), std::string(1, kOutputClaimed) + "one");
  host.reset();
  loop_.Until([&] { return !(*output)->attached(); });
  EXPECT_FALSE((*output)->delivered());
  ASSERT_EQ(::write(write_.get(), "two", 3), 3);
  const UniqueFd next = Open("c-stdout");
  EXPECT_EQ(Read(next, 4), std::string(1, kOutputClaimed) + "two");
}

TEST_P(OutputConnectionTest, AHostThatWithdrawsLeavesNothing) {
  UniqueFd host = Open("c-stdout");
  loop_.Until([&] { return registry_.size() == 1; });
  host.reset();
  loop_.Until([&] { return registry_.size() == 0; });
  loop_.Until([&] { return serving_ == 0; });
}

TEST_P(OutputConnectionTest, AForgottenStreamIsClosedAltogether) {
  const UniqueFd host = Open("c-stdout");
  const auto output = Run(host);
  loop_.Settle();
  registry_.Forget("c-stdout");
  EXPECT_TRUE(Ended(host));
  loop_.Until([&] { return ::write(write_.get(), "x", 1) < 0 && errno == EPIPE; });
  loop_.Until([&] { return serving_ == 0; });
}

// It had ended before anyone asked for it.
TEST_P(OutputConnectionTest, AForgottenStreamThatHadEndedIsClosedToo) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  write_.reset();
  loop_.Settle();
  const UniqueFd host = Open("c-stdout");
  EXPECT_EQ(Read(host, 1), std::string(1, kOutputClaimed));
  EXPECT_TRUE(Ended(host));
  registry_.Forget("c-stdout");
  // Over vsock and TCP nothing tells a peer that has closed from one that sends no more.
  loop_.Until([&] {
    pollfd entry = {host.get(), 0, 0};
    return GetParam() == Kind::kSocket ||
           (::poll(&entry, 1, 0) == 1 && (entry.revents & POLLHUP) != 0);
  });
  loop_.Until([&] { return serving_ == 0; });
}

TEST_P(OutputConnectionTest, ADiscardedStreamStillEnds) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  (*output)->Discard();
  ASSERT_EQ(::write(write_.get(), "for nobody", 10), 10);
  write_.reset();
  const UniqueFd host = Open("c-stdout");
  EXPECT_EQ(Read(host, 1), std::string(1, kOutputClaimed));
  EXPECT_TRUE(Ended(host));
}

// Nobody will read it: the process must be able to write on.
TEST_P(OutputConnectionTest, ADiscardedStreamIsDrained) {
  const UniqueFd host = Open("c-stdout");
  const auto output = Run(host);
  loop_.Settle();
  output->Discard();
  EXPECT_TRUE(Ended(host));
  size_t written = 0;
  const std::string chunk(4096, 'x');
  loop_.Until([&] {
    const ssize_t n = ::write(write_.get(), chunk.data(), chunk.size());
    if (n > 0) written += static_cast<size_t>(n);
    return written > 4 << 20;
  });
}

TEST_P(OutputConnectionTest, NamesThatAreNoneAreRefused) {
  for (const char* id : {"c-stdin", "../c-stdout", "", "what"}) {
    const UniqueFd host = Open(id);
    EXPECT_TRUE(Ended(host)) << id;
    loop_.Until([&] { return serving_ == 0; });
    EXPECT_EQ(status_.code(), absl::StatusCode::kInvalidArgument) << id;
  }
}

TEST_P(OutputConnectionTest, TakesOverFromAPeerAndIsLeftAloneByOne) {
  auto services = std::make_shared<ttrpc::Services>();
  services->AddStream(streaming::kStreamingService, streaming::kStreamMethod,
                      [this](const ttrpc::CallContext&, std::shared_ptr<ttrpc::Stream> stream) {
                        return registry_.Serve(std::move(stream));
                      });
  Wire wire(loop_, services);
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  const auto peer = loop_.Run(OpenStdio(wire.client, "c-stdout"));
  ASSERT_TRUE(peer.ok());
  ASSERT_EQ(::write(write_.get(), "one", 3), 3);
  EXPECT_EQ(loop_.Run(ReadOutput(*peer, 100, 3)).data, "one");
  const UniqueFd host = Open("c-stdout");
  EXPECT_EQ(Read(host, 1), std::string(1, kOutputClaimed));
  EXPECT_EQ(loop_.Run(ReadOutput(*peer, 100)).status.code(), absl::StatusCode::kCancelled);
  ASSERT_EQ(::write(write_.get(), "two", 3), 3);
  EXPECT_EQ(Read(host, 3), "two");
  const auto late = loop_.Run(OpenStdio(wire.client, "c-stdout"));
  ASSERT_TRUE(late.ok());
  EXPECT_EQ(loop_.Run(ReadOutput(*late, 100)).status.code(), absl::StatusCode::kFailedPrecondition);
}

// Whoever opens a stream may get here after the call that names it, and after a short process.
TEST_P(OutputConnectionTest, TheEndWaitsAMomentForWhoeverOpensTheStream) {
  const auto output = registry_.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(std::move(read_));
  ASSERT_EQ(::write(write_.get(), "all", 3), 3);
  write_.reset();
  loop_.Settle();
  bool sent = false;
  asio::co_spawn(loop_.context,
                 (*output)->WaitDelivered(Clock::now() + std::chrono::seconds(5),
                                          Clock::now() + std::chrono::seconds(10)),
                 [&](const std::exception_ptr&) { sent = true; });
  loop_.Settle();
  EXPECT_FALSE(sent);
  UniqueFd host = Open("c-stdout");
  EXPECT_EQ(Read(host, 4), std::string(1, kOutputClaimed) + "all");
  host.reset();
  loop_.Until([&] { return sent; });
}

// What a multiplexer would get: never the pipe itself, at which it could come to wait.
TEST(OutputSourcesTest, AreKept) {
  Loop loop;
  StreamRegistry registry(loop.executor());
  registry.KeepSources();
  auto [host, guest] = UnixPair();
  asio::co_spawn(loop.context, registry.ServeOutput(std::move(guest)), asio::detached);
  ASSERT_EQ(::send(host.get(),
                   "\x08"
                   "c-stdout",
                   9, 0),
            9);
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd written(fds[1]);
  const auto output = registry.ClaimOutput("c-stdout");
  ASSERT_TRUE(output.ok());
  (*output)->SetSource(UniqueFd(fds[0]));
  ASSERT_EQ(::write(written.get(), "text", 4), 4);
  std::string got;
  UniqueFd passed;
  loop.Until([&] {
    char buffer[64];
    const ssize_t n = ReceiveWithDescriptor(host.get(), buffer, sizeof(buffer), passed);
    if (n > 0) got.append(buffer, static_cast<size_t>(n));
    return passed.ok() || got.size() == 5;
  });
  EXPECT_FALSE(passed.ok());
  EXPECT_EQ(got, std::string(1, kOutputClaimed) + "text");
  host.reset();
  loop.Until([&] { return !(*output)->attached(); });
}

}  // namespace
}  // namespace magnetar::guest
