// The bytes of a VMM that has been taken over against the daemon's QMP client.
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/fuzz/peer.h"
#include "vmm/qemu/qmp.h"
#include "vmm/qemu/qmp_wire.h"

namespace magnetar::vmm::qemu {
namespace {

// Where QEMU would listen.
class Socket {
 public:
  Socket() {
    char directory[] = "/tmp/qmp_fuzzer.XXXXXX";
    if (::mkdtemp(directory) == nullptr) std::abort();
    directory_ = directory;
    path_ = directory_ + "/qmp.sock";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.c_str(), path_.size() + 1);
    fd_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 ||
        ::listen(fd_.get(), 1) != 0) {
      std::abort();
    }
  }
  ~Socket() {
    ::unlink(path_.c_str());
    ::rmdir(directory_.c_str());
  }

  const std::string& path() const { return path_; }
  UniqueFd Accept() const {
    return UniqueFd(::accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  }

 private:
  std::string directory_, path_;
  UniqueFd fd_;
};

std::vector<std::string> Lines(std::string_view bytes, size_t piece) {
  QmpLines lines;
  std::vector<std::string> out;
  while (!bytes.empty()) {
    lines.Append(bytes.substr(0, piece));
    bytes.remove_prefix(std::min(piece, bytes.size()));
    while (auto line = lines.Next()) out.push_back(*std::move(line));
  }
  return out;
}

void Feed(asio::io_context& io, const UniqueFd& peer, std::string_view text) {
  fuzz::Feed(io, peer, reinterpret_cast<const uint8_t*>(text.data()), text.size());
}

Co<void> Ask(std::shared_ptr<QmpClient> client, int* pending) {
  auto call = client->Execute("query-status", nlohmann::json(), UniqueFd());
  const absl::StatusOr<nlohmann::json> reply = co_await std::move(call);
  if (reply.ok()) {
    (void)StringAt(*reply, "status");
    (void)NumberAt(*reply, "fdset-id");
  }
  --*pending;
}

void Run(uint8_t how, std::string_view bytes) {
  static asio::io_context io(1);
  static const Socket socket;
  if (Lines(bytes, bytes.size()) != Lines(bytes, how % 31 + 1)) std::abort();

  std::optional<absl::StatusOr<std::shared_ptr<QmpClient>>> connected;
  bool closed = false;
  QmpClient::Handlers handlers;
  handlers.event = [](const std::string&, const nlohmann::json& event) {
    (void)StringAt(event, "device");
  };
  handlers.closed = [&closed] {
    if (closed) std::abort();
    closed = true;
  };
  asio::co_spawn(
      io, QmpClient::Connect(socket.path(), std::chrono::hours(1), std::move(handlers)),
      [&connected](const std::exception_ptr&, absl::StatusOr<std::shared_ptr<QmpClient>> result) {
        connected = std::move(result);
      });
  fuzz::Settle(io);
  UniqueFd peer = socket.Accept();
  if (!peer.ok()) std::abort();
  if ((how & 1) != 0) {
    Feed(io, peer, "{\"QMP\": {}}\r\n");
    Feed(io, peer, "{\"return\": {}, \"id\": 1}\r\n");
    if (!connected.has_value() || !connected->ok()) std::abort();
  }
  int pending = 0;
  if (connected.has_value() && connected->ok()) {
    const std::shared_ptr<QmpClient>& client = **connected;
    pending = 2;
    for (int i = 0; i < 2; ++i) asio::co_spawn(io, Ask(client, &pending), asio::detached);
    fuzz::Settle(io);
  }
  Feed(io, peer, bytes);
  peer.reset();
  fuzz::Settle(io);
  if (!connected.has_value() || pending != 0 || (connected->ok() && !closed)) std::abort();
}

}  // namespace
}  // namespace magnetar::vmm::qemu

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  magnetar::vmm::qemu::Run(data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
