#pragma once

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
  co_return co_await asio::co_spawn(pool, std::move(task), asio::use_awaitable);
}

}  // namespace magnetar
