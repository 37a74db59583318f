// The backend for tensors on CUDA devices, in a library of its own: it needs libtorch_cuda, and is opened where that is.

#include "shim.h"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <exception>

// Throws where it cannot be made, which the shim catches; the caller owns it.
extern "C" c10d::Backend* shoal_nccl_backend(c10d::Store* store, int rank, int size, int64_t timeout_ms) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = std::chrono::milliseconds(timeout_ms);
  auto shared = c10::intrusive_ptr<c10d::Store>::reclaim_copy(store);
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(shared, rank, size, options).release();
}
