#include <cstdlib>

#include "src/daemon/daemon.h"
#include "src/daemon/options.h"

int main(int argc, char** argv) {
  magnetar::daemon::Options options = magnetar::daemon::ParseOptions(argc, argv);
  const int code =
      options.done ? options.exit_code : magnetar::daemon::RunDaemon(std::move(options));
  // What matters lies on disk, and sandboxes go on without the daemon: nothing is
  // to be gained from taking the operations apart that wait for their VMs.
  std::_Exit(code);
}
