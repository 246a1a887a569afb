#pragma once

#include <memory>

#include "magnetar/ttrpc/ttrpc.h"

namespace magnetar::supervisor {

class Calls;
class Machine;

// supervisor.proto's Supervisor over a Machine, which must outlive the calls.
std::shared_ptr<const ttrpc::Services> MakeSupervisorService(Machine& machine,
                                                             std::shared_ptr<Calls> calls);

}  // namespace magnetar::supervisor
