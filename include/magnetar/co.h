#pragma once

#include <boost/asio/awaitable.hpp>

namespace magnetar {

// A coroutine of this project. Rule of the house, because GCC 12 destroys
// some temporaries of a co_await expression twice: no non-trivial temporary
// and no conditional expression inside `co_await ...`. Name the arguments first.
template <typename T>
using Co = boost::asio::awaitable<T>;

namespace asio = boost::asio;

}  // namespace magnetar
