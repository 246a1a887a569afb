#include "src/supervisor/guest_link.h"

#include <linux/vm_sockets.h>
#include <sys/socket.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "magnetar/mux.h"
#include "magnetar/status.h"
#include "src/supervisor/async_fd.h"

namespace magnetar::supervisor {
namespace {

class MuxLink : public GuestLink {
 public:
  explicit MuxLink(std::shared_ptr<mux::Host> host) : host_(std::move(host)) {}

  static Co<void> Run(std::shared_ptr<mux::Host> host, Log log) {
    auto run = host->Run();
    absl::Status status = co_await std::move(run);
    log(status.ok() ? std::string("the guest closed its port") : status.ToString());
  }

  Co<absl::Status> Ready() override { return host_->Ready(); }

  Co<absl::StatusOr<UniqueFd>> Connect(uint32_t port) override {
    auto connect = host_->Connect(port);
    absl::StatusOr<UniqueFd> stream = co_await std::move(connect);
    if (!stream.ok()) co_return stream;
    absl::Status status = SetNonBlocking(stream->get());
    if (!status.ok()) co_return status;
    co_return stream;
  }

  void Close() override { host_->Close(); }

 private:
  std::shared_ptr<mux::Host> host_;
};

class VsockLink : public GuestLink {
 public:
  VsockLink(asio::any_io_executor executor, uint32_t cid, UniqueFd listener)
      : executor_(executor), cid_(cid), listener_(executor, listener.release()) {}

  Co<absl::Status> Ready() override {
    while (true) {
      auto accept = Accept(listener_);
      absl::StatusOr<UniqueFd> knock = co_await std::move(accept);
      if (!knock.ok()) co_return knock.status();
      sockaddr_vm peer{};
      socklen_t length = sizeof(peer);
      // Any guest of this host can reach the port; only ours is heard.
      if (::getpeername(knock->get(), reinterpret_cast<sockaddr*>(&peer), &length) == 0 &&
          peer.svm_family == AF_VSOCK && peer.svm_cid == cid_) {
        listener_.close();
        co_return absl::OkStatus();
      }
    }
  }

  Co<absl::StatusOr<UniqueFd>> Connect(uint32_t port) override {
    UniqueFd fd(::socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.ok()) co_return ErrnoStatus(errno, "vsock socket");
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = cid_;
    address.svm_port = port;
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
      co_return fd;
    }
    if (errno != EINPROGRESS) co_return Refused(errno, port);
    AsyncFd socket(executor_, fd.release());
    auto wait = WaitWritable(socket);
    absl::Status status = co_await std::move(wait);
    if (!status.ok()) co_return status;
    int error = 0;
    socklen_t length = sizeof(error);
    ::getsockopt(socket.native_handle(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) co_return Refused(error, port);
    co_return UniqueFd(socket.release());
  }

  void Close() override { listener_.close(); }

 private:
  static absl::Status Refused(int error, uint32_t port) {
    return absl::UnavailableError(
        absl::StrCat("connect to port ", port, " of the guest: ", ::strerror(error)));
  }

  asio::any_io_executor executor_;
  uint32_t cid_;
  AsyncFd listener_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<GuestLink>> MakeGuestLink(asio::any_io_executor executor,
                                                         const v1::Transport& transport,
                                                         GuestLink::Log log) {
  if (transport.has_native()) return nullptr;
  if (transport.has_mux()) {
    UniqueFd channel(transport.mux().fd());
    MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(channel.get()));
    auto host = mux::Host::Create(std::move(channel));
    asio::co_spawn(executor, MuxLink::Run(host, std::move(log)), asio::detached);
    return std::make_shared<MuxLink>(std::move(host));
  }
  if (transport.has_kernel_vsock()) {
    const v1::KernelVsock& vsock = transport.kernel_vsock();
    UniqueFd listener(vsock.ready_listener_fd());
    MAGNETAR_RETURN_IF_ERROR(SetNonBlocking(listener.get()));
    return std::make_shared<VsockLink>(executor, vsock.cid(), std::move(listener));
  }
  return absl::InvalidArgumentError("launch: no transport");
}

}  // namespace magnetar::supervisor
