#include <cstdio>
#include <cstdlib>

#include "src/daemon/daemon.h"
#include "src/daemon/options.h"

int main(int argc, char** argv) {
  magnetar::daemon::Options options = magnetar::daemon::ParseOptions(argc, argv);
  const int code =
      options.done ? options.exit_code : magnetar::daemon::RunDaemon(std::move(options));
  // A daemon that could not start leaves threads behind: static objects that they may still
  // use are not destroyed.
  std::fflush(nullptr);
  std::_Exit(code);
}
