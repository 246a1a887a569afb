#include <iostream>

#include "src/ctl/command_line.h"

int main(int argc, char** argv) { return magnetar::ctl::Run(argc, argv, std::cout, std::cerr); }
