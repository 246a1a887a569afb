#include "src/daemon/metrics/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/unix_socket.h"
#include "src/daemon/metrics/address.h"

namespace magnetar::daemon {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kGet[] = "GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n";
constexpr char kLast[] = "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";

class HttpServerTest : public testing::Test {
 protected:
  HttpServerTest() {
    char name[] = "/tmp/metrics.XXXXXX";
    directory_ = ::mkdtemp(name);
    path_ = absl::StrCat(directory_, "/s");
  }
  ~HttpServerTest() override {
    server_.reset();
    work_.reset();
    io_.stop();
    for (std::thread& thread : threads_) thread.join();
    ::unlink(path_.c_str());
    ::rmdir(directory_.c_str());
  }

  void Serve(HttpLimits limits = HttpLimits()) {
    absl::StatusOr<UniqueFd> listener = ListenForMetrics(absl::StrCat("unix:", path_));
    ASSERT_TRUE(listener.ok()) << listener.status();
    server_ = std::make_unique<HttpServer>(
        io_.get_executor(), *std::move(listener), [this] { return text_(); }, limits);
    for (int i = 0; i < 2; ++i) threads_.emplace_back([this] { io_.run(); });
  }

  UniqueFd Connect() {
    UniqueFd fd = ConnectUnix(path_).value();
    const int flags = 0;
    EXPECT_EQ(::fcntl(fd.get(), F_SETFL, flags), 0);
    return fd;
  }
  static void Send(const UniqueFd& fd, const std::string& text) {
    // A connection that was refused meanwhile gives no answer.
    (void)!::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
  }
  // Until `end` has come, or the connection was closed.
  static std::string Receive(const UniqueFd& fd, const std::string& end = "") {
    std::string all;
    char buffer[4096];
    while (end.empty() || all.find(end) == std::string::npos) {
      const ssize_t n = ::recv(fd.get(), buffer, sizeof(buffer), 0);
      if (n <= 0) break;
      all.append(buffer, static_cast<size_t>(n));
    }
    return all;
  }
  // The whole answer to a request that lets the connection end.
  std::string Ask(const std::string& request) {
    const UniqueFd fd = Connect();
    Send(fd, request);
    return Receive(fd);
  }

  std::string directory_;
  std::string path_;
  std::function<std::string()> text_ = [] { return std::string("a_metric 1\n"); };
  asio::io_context io_;
  asio::executor_work_guard<asio::io_context::executor_type> work_{io_.get_executor()};
  std::unique_ptr<HttpServer> server_;
  std::vector<std::thread> threads_;
};

TEST_F(HttpServerTest, AnswersOneAfterTheOther) {
  Serve();
  const UniqueFd fd = Connect();
  Send(fd, kGet);
  const std::string answer = Receive(fd, "a_metric 1\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Length: 11\r\n"));
  Send(fd, kLast);
  EXPECT_THAT(Receive(fd), EndsWith("\r\n\r\na_metric 1\n"));
}

TEST_F(HttpServerTest, HeadTellsTheLengthAlone) {
  Serve();
  const std::string answer = Ask("HEAD /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(answer, HasSubstr("Content-Length: 11\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, AnOldClientsConnectionEnds) {
  Serve();
  EXPECT_THAT(Ask("GET /metrics?name[]=x HTTP/1.0\r\n\r\n"), EndsWith("\r\n\r\na_metric 1\n"));
}

TEST_F(HttpServerTest, NothingElseIsServed) {
  Serve();
  EXPECT_THAT(Ask("GET / HTTP/1.0\r\n\r\n"), StartsWith("HTTP/1.0 404"));
  EXPECT_THAT(Ask("GET /metrics/x HTTP/1.0\r\n\r\n"), StartsWith("HTTP/1.0 404"));
  const std::string refused = Ask("DELETE /metrics HTTP/1.0\r\n\r\n");
  EXPECT_THAT(refused, StartsWith("HTTP/1.0 405"));
  EXPECT_THAT(refused, HasSubstr("Allow: GET, HEAD\r\n"));
  EXPECT_THAT(refused, Not(HasSubstr("a_metric")));
  // A body is not waited for, and ends the connection.
  EXPECT_THAT(Ask("POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n"),
              StartsWith("HTTP/1.1 405"));
}

TEST_F(HttpServerTest, RefusesWhatIsNoRequest) {
  Serve();
  EXPECT_THAT(Ask("no request\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(Ask(absl::StrCat("GET /metrics HTTP/1.1\r\nX: ", std::string(16 << 10, 'x'))),
              StartsWith("HTTP/1.1 431"));
}

TEST_F(HttpServerTest, SlowRequestsEnd) {
  HttpLimits limits;
  limits.request = std::chrono::milliseconds(50);
  Serve(limits);
  EXPECT_EQ(Ask(""), "");
  EXPECT_EQ(Ask("GET /metrics HTTP/1.1\r\n"), "");
}

TEST_F(HttpServerTest, OneConnectionTooManyIsRefused) {
  HttpLimits limits;
  limits.connections = 1;
  Serve(limits);
  UniqueFd first = Connect();
  Send(first, kGet);
  EXPECT_THAT(Receive(first, "a_metric 1\n"), StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Receive(Connect()), StartsWith("HTTP/1.1 503"));
  // Its place is free once its end has been read.
  Send(first, kLast);
  Receive(first);
  std::string answer;
  do {
    answer = Ask(kLast);
  } while (answer.rfind("HTTP/1.1 503", 0) == 0 || answer.empty());
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, ATextThatTakesItsTimeKeepsOnlyTextsWaiting) {
  std::promise<void> slow;
  text_ = [wait = slow.get_future().share()] {
    wait.wait();
    return std::string("late 1\n");
  };
  Serve();
  const UniqueFd waiting = Connect();
  Send(waiting, kLast);
  EXPECT_THAT(Ask("GET / HTTP/1.0\r\n\r\n"), StartsWith("HTTP/1.0 404"));
  slow.set_value();
  EXPECT_THAT(Receive(waiting), EndsWith("late 1\n"));
}

TEST_F(HttpServerTest, TakesThePlaceOfASocketThatNobodyServes) {
  { const absl::StatusOr<UniqueFd> dead = ListenForMetrics(absl::StrCat("unix:", path_)); }
  Serve();
  const absl::StatusOr<UniqueFd> second = ListenForMetrics(absl::StrCat("unix:", path_));
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(path_));
  std::ofstream(path_ + ".file") << "x";
  EXPECT_TRUE(
      absl::IsFailedPrecondition(ListenForMetrics(absl::StrCat("unix:", path_, ".file")).status()));
  ::unlink((path_ + ".file").c_str());
}

TEST(MetricsAddress, SaysWhyItCannotBeBound) {
  const absl::StatusOr<UniqueFd> listener = ListenForMetrics("127.0.0.1:0");
  ASSERT_TRUE(listener.ok()) << listener.status();
  sockaddr_in address{};
  socklen_t size = sizeof(address);
  ASSERT_EQ(::getsockname(listener->get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string same = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  const std::string taken(ListenForMetrics(same).status().message());
  EXPECT_THAT(taken, HasSubstr(same));
  EXPECT_THAT(taken, HasSubstr("Address already in use"));
  // TEST-NET-1: nobody's own.
  EXPECT_THAT(std::string(ListenForMetrics("192.0.2.1:9100").status().message()),
              HasSubstr("Cannot assign requested address"));
  EXPECT_THAT(std::string(ListenForMetrics("no.such.host.invalid:9100").status().message()),
              HasSubstr("look up no.such.host.invalid:9100"));
  EXPECT_TRUE(ListenForMetrics("[::1]:0").ok());
}

}  // namespace
}  // namespace magnetar::daemon
