#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace magnetar::ttrpc {

// Hears the calls of a ttrpc connection as its bytes pass by. A request that is longer than any of
// interest, and what is no ttrpc, passes unheard. One thread.
class Overhear {
 public:
  static constexpr size_t kMaxRequestBytes = 4096;

  struct Call {
    uint32_t stream_id = 0;
    std::string service;
    std::string method;
    std::string payload;
  };
  struct Ears {
    std::function<void(Call call)> request;
    // Of whatever contents.
    std::function<void(uint32_t stream_id)> response;
  };

  explicit Overhear(Ears ears);
  ~Overhear();

  void FromClient(std::string_view bytes);
  void FromServer(std::string_view bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace magnetar::ttrpc
