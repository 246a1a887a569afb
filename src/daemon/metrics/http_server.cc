#include "src/daemon/metrics/http_server.h"

#include <sys/socket.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/basic_stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <string_view>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "magnetar/blocking.h"
#include "src/daemon/config/log.h"

namespace magnetar::daemon {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;

using Protocol = asio::generic::stream_protocol;
using Acceptor = asio::basic_socket_acceptor<Protocol>;
using Stream = beast::basic_stream<Protocol>;
using Request = http::request<http::empty_body>;
using Response = http::response<http::string_body>;

constexpr char kContentType[] = "text/plain; version=0.0.4; charset=utf-8";
constexpr char kTooMany[] =
    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
// What is short may be freed by others, who tell nobody.
constexpr std::chrono::seconds kShortagePause{1};

Response Plain(http::status status, unsigned version) {
  Response response(status, version);
  response.set(http::field::content_type, "text/plain; charset=utf-8");
  response.body() = std::string(http::obsolete_reason(status)) + "\n";
  return response;
}

http::status StatusOf(const beast::error_code& error) {
  return error == http::error::header_limit || error == http::error::buffer_overflow
             ? http::status::request_header_fields_too_large
             : http::status::bad_request;
}

bool IsMetrics(std::string_view target) { return target.substr(0, target.find('?')) == "/metrics"; }

}  // namespace

class HttpServer::State : public std::enable_shared_from_this<State> {
 public:
  State(const asio::any_io_executor& executor, UniqueFd listener, std::function<std::string()> text,
        HttpLimits limits)
      : executor_(executor),
        strand_(asio::make_strand(executor)),
        acceptor_(strand_, Protocol(AF_UNSPEC, 0), listener.release()),
        pause_(strand_),
        text_(std::move(text)),
        limits_(limits) {}

  void Start() { asio::co_spawn(strand_, Accept(), asio::detached); }

  void Stop() {
    asio::post(strand_, [self = shared_from_this()] {
      self->stopped_ = true;
      self->acceptor_.close();
      self->pause_.cancel();
    });
    maker_.join();
  }

 private:
  Co<void> Accept() {
    auto self = shared_from_this();
    while (!stopped_) {
      // A strand for each: a stream's timer and its operations must not run at once.
      auto accept = acceptor_.async_accept(asio::any_io_executor(asio::make_strand(executor_)),
                                           asio::as_tuple(asio::use_awaitable));
      auto [error, socket] = co_await std::move(accept);
      if (stopped_) co_return;
      if (error) {
        pause_.expires_after(kShortagePause);
        auto wait = pause_.async_wait(asio::as_tuple(asio::use_awaitable));
        co_await std::move(wait);
        continue;
      }
      if (open_ >= limits_.connections) {
        (void)::send(socket.native_handle(), kTooMany, sizeof(kTooMany) - 1,
                     MSG_DONTWAIT | MSG_NOSIGNAL);
        continue;
      }
      ++open_;
      const asio::any_io_executor executor = socket.get_executor();
      asio::co_spawn(executor, Serve(std::move(socket)), asio::detached);
    }
  }

  Co<void> Serve(Protocol::socket socket) {
    auto self = shared_from_this();
    const absl::Cleanup closed = [this] { --open_; };
    Stream stream(std::move(socket));
    beast::flat_buffer buffer(limits_.header_bytes);
    bool again = true;
    while (again) {
      http::request_parser<http::empty_body> parser;
      parser.header_limit(static_cast<uint32_t>(limits_.header_bytes));
      stream.expires_after(limits_.request);
      auto read =
          http::async_read_header(stream, buffer, parser, asio::as_tuple(asio::use_awaitable));
      const auto [failed, size] = co_await std::move(read);
      Response response;
      if (!failed) {
        auto answer = Answer(parser.get());
        response = co_await std::move(answer);
        // A body is of no use here, and is not read.
        response.keep_alive(parser.keep_alive() && parser.is_done());
      } else if (failed.category() == http::make_error_code(http::error::bad_method).category() &&
                 failed != http::error::end_of_stream && failed != http::error::partial_message) {
        response = Plain(StatusOf(failed), 11);
        response.keep_alive(false);
      } else {
        co_return;  // it has gone, or its time is over
      }
      response.prepare_payload();
      again = response.keep_alive();
      const bool head = !failed && parser.get().method() == http::verb::head;
      stream.expires_after(limits_.answer);
      auto write = Write(stream, response, head);
      const bool written = co_await std::move(write);
      if (!written) co_return;
    }
    beast::error_code ignored;
    stream.socket().shutdown(Protocol::socket::shutdown_send, ignored);
  }

  Co<bool> Write(Stream& stream, Response& response, bool head) {
    http::response_serializer<http::string_body> serializer(response);
    beast::error_code failed;
    if (head) {
      serializer.split(true);
      auto write =
          http::async_write_header(stream, serializer, asio::as_tuple(asio::use_awaitable));
      const auto [error, size] = co_await std::move(write);
      failed = error;
    } else {
      auto write = http::async_write(stream, serializer, asio::as_tuple(asio::use_awaitable));
      const auto [error, size] = co_await std::move(write);
      failed = error;
    }
    co_return !failed;
  }

  Co<Response> Answer(const Request& request) {
    const unsigned version = request.version();
    if (!IsMetrics(std::string_view(request.target().data(), request.target().size()))) {
      co_return Plain(http::status::not_found, version);
    }
    if (request.method() != http::verb::get && request.method() != http::verb::head) {
      Response response = Plain(http::status::method_not_allowed, version);
      response.set(http::field::allow, "GET, HEAD");
      co_return response;
    }
    auto make = RunBlocking(maker_, [self = shared_from_this()] { return self->text_(); });
    std::string text = co_await std::move(make);
    Response response(http::status::ok, version);
    response.set(http::field::content_type, kContentType);
    response.body() = std::move(text);
    co_return response;
  }

  const asio::any_io_executor executor_;
  const asio::strand<asio::any_io_executor> strand_;
  Acceptor acceptor_;
  asio::steady_timer pause_;
  const std::function<std::string()> text_;
  const HttpLimits limits_;
  asio::thread_pool maker_{1};
  std::atomic<int> open_{0};
  bool stopped_ = false;
};

HttpServer::HttpServer(const asio::any_io_executor& executor, UniqueFd listener,
                       std::function<std::string()> text, HttpLimits limits)
    : state_(std::make_shared<State>(executor, std::move(listener), std::move(text), limits)) {
  state_->Start();
}

HttpServer::~HttpServer() { state_->Stop(); }

}  // namespace magnetar::daemon
