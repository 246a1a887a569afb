// Stands for a VMM with a guest in the supervisor's tests: one process that speaks
// the guest's side of the multiplexed channel.
//   fake_guest <channel fd> <what> ...
// what: "echo" answers on port 7 and refuses all others; "silent" never knocks;
// "exit" ends with status 5; "fork" leaves a child that ignores everything, then echoes.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "magnetar/mux.h"

namespace {

using magnetar::UniqueFd;

constexpr uint32_t kEchoPort = 7;
// forward.h's answer, then an echo.
constexpr uint32_t kForwardPort = 1026;

void Echo(UniqueFd stream, bool forward) {
  ::fcntl(stream.get(), F_SETFL, 0);
  if (forward) {
    unsigned char port[2];
    if (::recv(stream.get(), port, 2, MSG_WAITALL) != 2) return;
    const unsigned char refused = port[0] * 256 + port[1] == 8080 ? 0 : 1;
    if (::send(stream.get(), &refused, 1, MSG_NOSIGNAL) != 1 || refused != 0) return;
  }
  char buffer[65536];
  ssize_t n;
  while ((n = ::recv(stream.get(), buffer, sizeof(buffer), 0)) > 0) {
    for (ssize_t at = 0; at < n;) {
      const ssize_t sent =
          ::send(stream.get(), buffer + at, static_cast<size_t>(n - at), MSG_NOSIGNAL);
      if (sent <= 0) return;
      at += sent;
    }
  }
  ::shutdown(stream.get(), SHUT_WR);
  // Until the peer has seen it.
  while (::recv(stream.get(), buffer, sizeof(buffer), 0) > 0) {
  }
}

void Serve(int channel) {
  magnetar::asio::io_context context(1);
  auto guest = magnetar::mux::Guest::Create(UniqueFd(channel), [](uint32_t port, UniqueFd stream) {
    if (port != kEchoPort && port != kForwardPort) {
      return absl::UnavailableError("nothing listens");
    }
    std::thread(Echo, std::move(stream), port == kForwardPort).detach();
    return absl::OkStatus();
  });
  magnetar::asio::co_spawn(context, guest->Run(), magnetar::asio::detached);
  context.run();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const int channel = std::atoi(argv[1]);
  const std::string what = argv[2];
  std::printf("guest console line\n");
  std::fflush(stdout);
  std::fprintf(stderr, "vmm complains\n");
  if (what == "exit") return 5;
  if (what == "fork" && ::fork() == 0) {
    ::setsid();
    for (int s = 1; s < NSIG; ++s) ::signal(s, SIG_IGN);
    while (true) ::pause();
  }
  if (what == "silent") ::pause();
  Serve(channel);
  ::pause();
}
