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

}  // namespace magnetar::guest
