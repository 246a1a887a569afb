#pragma once

#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace magnetar {

// Runs `f`, which returns a Status or a StatusOr, on a thread that ends afterwards, once `enter`
// has put that thread into a namespace: no other thread ever changes its own. Blocks. An error of
// `enter` is returned as it is; RESOURCE_EXHAUSTED: there can be no thread.
template <typename Enter, typename F>
std::invoke_result_t<F> RunOnOwnThread(Enter enter, F f) {
  using Result = std::invoke_result_t<F>;
  Result result = absl::InternalError("the thread did not run");
  try {
    std::thread([&] {
      absl::Status entered = enter();
      if (entered.ok()) {
        result = f();
      } else {
        result = std::move(entered);
      }
    }).join();
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("start a thread: ", error.what()));
  }
  return result;
}

}  // namespace magnetar
