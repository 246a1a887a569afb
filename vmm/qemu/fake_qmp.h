#pragma once

#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "magnetar/unique_fd.h"

namespace magnetar::vmm::qemu {

// A QMP server for one connection, on a thread of its own and with blocking calls, so that it
// shares nothing with the client under test.
class FakeQmp {
 public:
  struct Command {
    std::string name;
    nlohmann::json arguments;
    bool with_fd = false;
  };
  // Returns the messages to send for a command: "return", "error" or events; the
  // id is added to those that have no "event".
  using Script = std::function<std::vector<nlohmann::json>(const Command&)>;

  // Listens in a directory of its own. `after_negotiation` goes out in one write with the answer
  // that ends the negotiation.
  explicit FakeQmp(Script script, std::string after_negotiation = "");
  ~FakeQmp();

  const std::string& path() const { return path_; }
  std::vector<Command> commands() const;
  // Sends raw bytes to the client.
  void Send(const std::string& text);
  void Disconnect();

 private:
  void Serve();
  std::string ReadLine(bool* with_fd);

  Script script_;
  std::string after_negotiation_;
  std::string directory_, path_;
  UniqueFd listener_, connection_;
  mutable std::mutex mutex_;
  std::vector<Command> commands_;
  std::string buffer_;
  std::thread thread_;
};

}  // namespace magnetar::vmm::qemu
