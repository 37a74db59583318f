// The C interface of c10d, PyTorch's distributed engine, as `mod.rs` calls it.
//
// Every function that can fail gives 0, or 1 and leaves the reason with `shoal_c10d_error` of the same thread. Tensors are tch's
// C tensors, `at::Tensor*`, which calls borrow. No exception crosses this border.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <cstdint>

// Makes the backend for tensors on CUDA devices; the one in nccl.cpp, which lies in a library of its own.
using ShoalBackendMaker = c10d::Backend* (*)(c10d::Store* store, int rank, int size, int64_t timeout_ms);
