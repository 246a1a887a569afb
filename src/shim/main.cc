#include <string>
#include <vector>

#include "src/shim/shim.h"

int main(int argc, char** argv) {
  return magnetar::shim::Run(std::vector<std::string>(argv + 1, argv + argc), "/run/vmm-sandboxer");
}
