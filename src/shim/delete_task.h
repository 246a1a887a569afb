#pragma once

#include <chrono>
#include <string>

#include "containerd/task.pb.h"

namespace magnetar::shim {

// Exit status of a task of which nobody knows more: it was killed. As containerd's own shim has it.
inline constexpr uint32_t kUnknownExit = 128 + 9;

// What is left of a task when its connection to containerd is gone: ends it and tells its exit.
//   - The VM has ended: the time that vmm-supervisor wrote down, and that the task was killed with
//   it.
//   - The VM lives: the guest is asked; what still runs is killed, and deleted.
//   - Else, or if the guest answers nothing within `limit`: killed, now.
// Needs no daemon; a task that is gone is fine. `warning` gets a text for the operator, if any.
containerd::task::v3::DeleteResponse DeleteTask(const std::string& sandbox_directory,
                                                const std::string& id,
                                                std::chrono::milliseconds limit,
                                                std::string& warning);

}  // namespace magnetar::shim
