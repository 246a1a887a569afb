#pragma once

#include <string>
#include <vector>

namespace magnetar::guest {

// Paths in a list of modules: one per line, '#' begins a comment.
std::vector<std::string> ParseModuleList(const std::string& text);

// Loads the modules that `list` names, in order. One that does not load is
// logged and passed over: what needed it says more about it. An absent list is
// an empty one.
void LoadModules(const std::string& list);

// The kernel runs the agent as "modprobe -q -- NAME" when it wants a module, which a container may
// have made it want. Only those that the root image lists for that are loaded.
bool IsModprobe(const char* program);
// Its exit code.
int ModprobeMain(const std::vector<std::string>& arguments);
// Paths in `text`, of lines "<name> <path>...", that `name` stands for; none if it is not there. To
// the kernel '-' is '_'.
std::vector<std::string> RequestedModules(const std::string& text, std::string name);

// Loads the list of `name` ("ext4", "scsi") that the root image keeps for what only
// some containers need, once. No list: it is built in, or the mount will say so. Thread-safe.
void LoadModulesFor(const std::string& name);

}  // namespace magnetar::guest
