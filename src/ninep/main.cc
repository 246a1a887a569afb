#include <csignal>
#include <cstdio>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "src/ninep/jail.h"
#include "src/ninep/server.h"

// vmm-9p --fd=N --directory=PATH: serves the directory by 9P2000.L on the stream socket that is
// descriptor N, until its peer closes it.
int main(int argc, char** argv) {
  using magnetar::UniqueFd;
  namespace ninep = magnetar::ninep;
  int fd = -1;
  std::string directory;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--fd=") && absl::SimpleAtoi(argument, &fd)) continue;
    if (absl::ConsumePrefix(&argument, "--directory=")) directory = std::string(argument);
  }
  if (fd < 0 || directory.empty()) {
    std::fputs("usage: vmm-9p --fd=N --directory=PATH\n", stderr);
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  UniqueFd stream(fd);
  absl::StatusOr<UniqueFd> root = ninep::EnterJail(directory);
  absl::Status status = root.status();
  if (root.ok()) {
    ninep::Session session(*std::move(root), ninep::Descriptors(""));
    status = ninep::Serve(std::move(stream), session);
  }
  if (status.ok()) return 0;
  std::fputs(absl::StrCat("vmm-9p: ", status.message(), "\n").c_str(), stderr);
  return 1;
}
