// Names that ProcessGroupGloo.hpp uses of this header of gloo: see README.md beside.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

} // namespace gloo
