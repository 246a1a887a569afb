#pragma once

#include <ostream>

namespace magnetar::ctl {

// magnetarctl: what an operator wants to know about sandboxes, from their run directory; it needs
// no daemon. Returns the exit status: 0, 1 for an error (on `err`), CLI11's own for
// a command line that is none.
int Run(int argc, const char* const* argv, std::ostream& out, std::ostream& err);

}  // namespace magnetar::ctl
