// Names that ProcessGroupGloo.hpp uses of this header of gloo: see README.md beside.
#pragma once

namespace gloo::transport {

class Device;

class UnboundBuffer {
 public:
  virtual ~UnboundBuffer();
};

} // namespace gloo::transport
