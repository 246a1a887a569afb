#include "src/daemon/network/forward.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <mutex>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/strings/substitute.h"
#include "magnetar/status.h"
#include "src/daemon/network/netlink.h"

// The header defines this itself, with another value.
#pragma push_macro("_GNU_SOURCE")
#undef _GNU_SOURCE
#include <nftables/libnftables.h>
#pragma pop_macro("_GNU_SOURCE")

namespace magnetar::daemon {
namespace {

using NftContext = std::unique_ptr<nft_ctx, NlFree<nft_ctx_free>>;

constexpr char kTable[] = "inet magnetar";

// Adding first makes the deletion succeed whether the table was there or not.
constexpr char kRemove[] = "add table inet magnetar\ndelete table inet magnetar\n";

// What the commands print.
absl::StatusOr<std::string> RunNft(const std::string& commands, absl::string_view context) {
  // libnftables keeps its parser's state in globals.
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  NftContext nft(::nft_ctx_new(NFT_CTX_DEFAULT));
  if (nft == nullptr) {
    return absl::InternalError(absl::StrCat(context, ": cannot open nftables"));
  }
  ::nft_ctx_buffer_output(nft.get());
  ::nft_ctx_buffer_error(nft.get());
  if (::nft_run_cmd_from_buffer(nft.get(), commands.c_str()) == 0) {
    return std::string(::nft_ctx_get_output_buffer(nft.get()));
  }
  return absl::FailedPreconditionError(absl::StrCat(
      context, ": nftables: ", absl::StripAsciiWhitespace(::nft_ctx_get_error_buffer(nft.get()))));
}

absl::StatusOr<UniqueFd> Listen() {
  int family = AF_INET6;
  UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok() && errno == EAFNOSUPPORT) {
    family = AF_INET;
    fd.reset(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  }
  if (!fd.ok()) return ErrnoStatus(errno, "create the port-forward listener");
  sockaddr_in6 v6 = {};
  v6.sin6_family = AF_INET6;
  sockaddr_in v4 = {};
  v4.sin_family = AF_INET;
  const sockaddr* address =
      family == AF_INET6 ? reinterpret_cast<sockaddr*>(&v6) : reinterpret_cast<sockaddr*>(&v4);
  const socklen_t size = family == AF_INET6 ? sizeof(v6) : sizeof(v4);
  const int off = 0;
  if (family == AF_INET6 &&
      ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) != 0) {
    return ErrnoStatus(errno, "make the port-forward listener dual-stack");
  }
  if (::bind(fd.get(), address, size) != 0) {
    return ErrnoStatus(errno, "bind the port-forward listener");
  }
  if (::listen(fd.get(), SOMAXCONN) != 0) return ErrnoStatus(errno, "listen for port-forward");
  return fd;
}

absl::StatusOr<uint16_t> PortOf(int fd) {
  sockaddr_in6 address = {};
  socklen_t size = sizeof(address);
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return ErrnoStatus(errno, "getsockname of the port-forward listener");
  }
  // sin_port and sin6_port are at the same place.
  return ntohs(address.sin6_port);
}

}  // namespace

std::string ForwardRules(uint16_t port) {
  return absl::Substitute(R"(table inet magnetar {
  chain output {
    type nat hook output priority -100; policy accept;
    oif "lo" ip daddr 127.0.0.0/8 tcp dport != $0 redirect to :$0
    oif "lo" ip6 daddr ::1 tcp dport != $0 redirect to :$0
  }
  chain input {
    type filter hook input priority -10; policy accept;
    iif != "lo" tcp dport $0 drop
  }
}
)",
                          port);
}

absl::StatusOr<UniqueFd> StartForwarding() {
  auto listener = Listen();
  if (!listener.ok()) return listener.status();
  auto port = PortOf(listener->get());
  if (!port.ok()) return port.status();
  auto made =
      RunNft(absl::StrCat(kRemove, ForwardRules(*port)), "redirect loopback for port-forward");
  if (!made.ok()) return made.status();
  return listener;
}

absl::Status RemoveForwarding() { return RunNft(kRemove, "remove port-forward rules").status(); }

std::vector<std::string> ParseForeignTables(absl::string_view tables) {
  std::vector<std::string> out;
  for (absl::string_view line : absl::StrSplit(tables, '\n', absl::SkipEmpty())) {
    if (absl::ConsumePrefix(&line, "table ") && line != kTable) out.emplace_back(line);
  }
  return out;
}

std::vector<std::string> ForeignTables() {
  auto tables = RunNft("list tables\n", "list tables");
  return tables.ok() ? ParseForeignTables(*tables) : std::vector<std::string>();
}

}  // namespace magnetar::daemon
