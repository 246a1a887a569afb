#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace magnetar::ttrpc {

// Hears the requests of a ttrpc client as its bytes pass by on their way to the server. What is
// longer than any request of interest, or no ttrpc, passes unheard. One thread.
class Overhear {
 public:
  static constexpr size_t kMaxRequestBytes = 4096;
  using Heard = std::function<void(const std::string& service, const std::string& method,
                                   const std::string& payload)>;

  explicit Overhear(Heard heard);
  ~Overhear();
  Overhear(Overhear&&) noexcept;

  void Add(std::string_view bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace magnetar::ttrpc
