#pragma once

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <type_traits>
#include <utility>

#include "magnetar/co.h"

namespace magnetar {

// Runs a blocking function on `pool` and resumes the caller on its own executor
// with the result. The function must own, or be sure to outlive, what it touches:
// it runs to its end even if the caller is cancelled.
template <typename F>
Co<std::invoke_result_t<F>> RunBlocking(asio::thread_pool& pool, F f) {
  auto body = [](F g) -> Co<std::invoke_result_t<F>> { co_return g(); };
  auto task = body(std::move(f));
  // A cancellation must not be passed on to the pool: asio would hand it over by a pointer
  // that is gone once the function has returned.
  auto run =
      asio::co_spawn(pool, std::move(task),
                     asio::bind_cancellation_slot(asio::cancellation_slot(), asio::use_awaitable));
  co_return co_await std::move(run);
}

}  // namespace magnetar
