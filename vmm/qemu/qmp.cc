#include "vmm/qemu/qmp.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/descriptor_message.h"
#include "magnetar/event.h"
#include "magnetar/status.h"
#include "vmm/qemu/qmp_wire.h"

namespace magnetar::vmm::qemu {
namespace {

using nlohmann::json;
using Descriptor = asio::posix::stream_descriptor;

// Buffers read before others get their turn: a VMM that has been taken over may never stop
// sending, and the daemon has few threads.
constexpr int kReadsInARow = 8;

Co<bool> WaitFor(Descriptor& socket, Descriptor::wait_type type) {
  auto wait = socket.async_wait(type, asio::as_tuple(asio::use_awaitable));
  auto [error] = co_await std::move(wait);
  co_return !error;
}

class Client : public QmpClient, public std::enable_shared_from_this<Client> {
 public:
  Client(const asio::any_io_executor& executor, UniqueFd socket, std::chrono::nanoseconds timeout,
         Handlers handlers)
      : executor_(executor),
        socket_(executor, socket.release()),
        timeout_(timeout),
        handlers_(std::move(handlers)),
        greeted_(std::make_shared<Call>(executor)) {}

  void Start() { asio::co_spawn(executor_, Read(shared_from_this()), asio::detached); }

  Co<absl::Status> Greeted() {
    auto wait = Await(greeted_);
    co_return co_await std::move(wait);
  }

  Co<absl::StatusOr<json>> Execute(std::string command, json arguments, UniqueFd fd) override {
    auto self = shared_from_this();
    if (closed_) co_return absl::UnavailableError(absl::StrCat("QMP ", command, ": no connection"));
    const uint64_t id = next_id_++;
    auto call = std::make_shared<Call>(executor_);
    calls_[id] = call;
    outgoing_.push_back({FormatQmp(id, command, arguments), std::move(fd)});
    if (!writing_) {
      writing_ = true;
      asio::co_spawn(executor_, Write(self), asio::detached);
    }
    auto wait = Await(call);
    absl::Status status = co_await std::move(wait);
    calls_.erase(id);
    if (!status.ok()) co_return Annotate(status, absl::StrCat("QMP ", command));
    co_return std::move(call->data);
  }

  void Close() override { ::shutdown(socket_.native_handle(), SHUT_RDWR); }

 private:
  struct Call {
    explicit Call(const asio::any_io_executor& executor) : done(executor) {}
    Event done;
    std::optional<absl::Status> status;
    json data;
  };
  struct Outgoing {
    std::string text;
    UniqueFd fd;
  };

  Co<absl::Status> Await(std::shared_ptr<Call> call) {
    const auto deadline = Event::Clock::now() + timeout_;
    while (!call->status.has_value()) {
      if (Event::Clock::now() >= deadline) {
        co_return absl::DeadlineExceededError("QEMU does not answer");
      }
      auto wait = call->done.WaitUntil(deadline);
      co_await std::move(wait);
      const auto cancellation = co_await asio::this_coro::cancellation_state;
      if (Cancelled(cancellation)) co_return absl::CancelledError("cancelled");
    }
    co_return *call->status;
  }

  static void Finish(Call& call, absl::Status status) {
    call.status = std::move(status);
    call.done.NotifyAll();
  }

  static Co<void> Write(std::shared_ptr<Client> self) {
    while (!self->outgoing_.empty()) {
      Outgoing& next = self->outgoing_.front();
      const ssize_t n = SendWithDescriptor(self->socket_.native_handle(), next.text, next.fd.get());
      if (n < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) break;  // the reader sees the end, too
        auto wait = WaitFor(self->socket_, Descriptor::wait_write);
        if (!co_await std::move(wait)) break;
        continue;
      }
      next.fd.reset();
      next.text.erase(0, static_cast<size_t>(n));
      if (next.text.empty()) self->outgoing_.pop_front();
    }
    self->writing_ = false;
  }

  static Co<void> Read(std::shared_ptr<Client> self) {
    QmpLines lines;
    char buffer[16384];
    std::string reason = "QEMU closed the connection";
    int reads = 0;
    while (true) {
      if (++reads == kReadsInARow) {
        reads = 0;
        auto turn = asio::post(self->executor_, asio::use_awaitable);
        co_await std::move(turn);
      }
      const ssize_t n = ::recv(self->socket_.native_handle(), buffer, sizeof(buffer), 0);
      if (n == 0) break;
      if (n < 0) {
        if (errno == EINTR) continue;
        if (errno != EAGAIN) break;
        reads = 0;
        auto wait = WaitFor(self->socket_, Descriptor::wait_read);
        if (!co_await std::move(wait)) break;
        continue;
      }
      lines.Append(std::string_view(buffer, static_cast<size_t>(n)));
      bool valid = true;
      while (auto line = lines.Next()) valid = valid && self->Handle(*line);
      if (!valid || lines.buffered() > kMaxQmpMessageBytes) {
        reason = "QEMU sent what is no QMP";
        break;
      }
    }
    self->End(reason);
  }

  bool Handle(const std::string& line) {
    auto message = ParseQmp(line);
    if (!message.ok()) return false;
    switch (message->kind) {
      case QmpMessage::Kind::kGreeting:
        Finish(*greeted_, absl::OkStatus());
        break;
      case QmpMessage::Kind::kEvent:
        if (handlers_.event) handlers_.event(message->event, message->data);
        break;
      case QmpMessage::Kind::kReply:
        // A reply to a call that gave up waiting has nobody left.
        if (const auto it = calls_.find(message->id); it != calls_.end()) {
          const std::shared_ptr<Call> call = it->second;
          calls_.erase(it);
          call->data = std::move(message->data);
          Finish(*call, std::move(message->status));
        }
        break;
    }
    return true;
  }

  void End(const std::string& reason) {
    closed_ = true;
    Close();
    const absl::Status status = absl::UnavailableError(reason);
    if (!greeted_->status.has_value()) Finish(*greeted_, status);
    for (auto& [id, call] : calls_) {
      if (!call->status.has_value()) Finish(*call, status);
    }
    // The handlers may hold the owner of this connection: they go with it.
    const Handlers handlers = std::exchange(handlers_, Handlers());
    if (handlers.closed) handlers.closed();
  }

  asio::any_io_executor executor_;
  Descriptor socket_;
  const std::chrono::nanoseconds timeout_;
  Handlers handlers_;
  std::shared_ptr<Call> greeted_;
  std::map<uint64_t, std::shared_ptr<Call>> calls_;
  std::deque<Outgoing> outgoing_;
  bool writing_ = false;
  bool closed_ = false;
  uint64_t next_id_ = 1;
};

absl::StatusOr<UniqueFd> Dial(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": too long for a socket"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return ErrnoStatus(errno, "socket");
  // A unix socket connects at once or not at all.
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(absl::StrCat("connect to ", path, ": ", ::strerror(errno)));
  }
  return fd;
}

}  // namespace

Co<absl::StatusOr<std::shared_ptr<QmpClient>>> QmpClient::Connect(std::string path,
                                                                  std::chrono::nanoseconds timeout,
                                                                  Handlers handlers) {
  auto socket = Dial(path);
  if (!socket.ok()) co_return socket.status();
  auto executor = co_await asio::this_coro::executor;
  auto client =
      std::make_shared<Client>(executor, *std::move(socket), timeout, std::move(handlers));
  client->Start();
  auto greeted = client->Greeted();
  absl::Status status = co_await std::move(greeted);
  if (status.ok()) {
    auto negotiate = client->Execute("qmp_capabilities", json(), UniqueFd());
    absl::StatusOr<json> reply = co_await std::move(negotiate);
    status = reply.status();
  }
  if (!status.ok()) {
    client->Close();
    co_return Annotate(status, path);
  }
  co_return std::shared_ptr<QmpClient>(std::move(client));
}

}  // namespace magnetar::vmm::qemu
