// A thin layer over c10d: stores, process groups, and the reducer of DistributedDataParallel. See shim.h.

#include "shim.h"
#include "hops.h"

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <cstdlib>
#include <string>
#include <vector>

namespace {

using c10::intrusive_ptr;
using std::chrono::milliseconds;

// Settings that c10d reads from the environment at its first calls, unless whoever starts the program has others; this is before
// main, where nobody else reads it. Its record of past calls is one for the process, and not safe where groups on several threads write
// to it. Who is lost, and when to end, is found out by src/world/watch.rs, with a name: NCCL's own watch would only abort.
[[maybe_unused]] const int settings = [] {
  setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0);
  setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/0);
  setenv("TORCH_NCCL_ENABLE_MONITORING", "0", /*overwrite=*/0);
  return 0;
}();

thread_local std::string last_error;

template <typename Work>
int guarded(Work work) {
  try {
    work();
    return 0;
  } catch (const c10::Error& error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception without a text";
  }
  return 1;
}

struct StoreBox {
  intrusive_ptr<c10d::Store> store;
};

struct GroupBox {
  intrusive_ptr<c10d::ProcessGroup> group;
};

struct ReducerBox {
  std::unique_ptr<c10d::Reducer> reducer;
};

using Bytes = std::vector<uint8_t>;

c10d::ReduceOp reduce_op(int number) {
  switch (number) {
    case 0:
      return c10d::ReduceOp::SUM;
    case 1:
      return c10d::ReduceOp::MIN;
    case 2:
      return c10d::ReduceOp::MAX;
    default:
      TORCH_CHECK(false, "no such reduction: ", number);
  }
}

void all_reduce(c10d::ProcessGroup& group, const at::Tensor& tensor, c10d::ReduceOp op) {
  if (shoal::is_small(tensor)) {
    shoal::all_reduce_in_few_hops(group, tensor, op);
    return;
  }
  std::vector<at::Tensor> tensors{tensor};
  c10d::AllreduceOptions options;
  options.reduceOp = std::move(op);
  group.allreduce(tensors, options)->wait();
}

// A sum over all ranks through which gradients flow: the loss of every rank depends on what each of them puts in, so the gradient
// of a rank's part is the sum of all ranks' gradients of the sum.
struct SumOverRanks : torch::autograd::Function<SumOverRanks> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& part, int64_t group) {
    context->saved_data["group"] = group;
    at::Tensor sum = part.clone();
    all_reduce(*reinterpret_cast<c10d::ProcessGroup*>(group), sum, c10d::ReduceOp::SUM);
    return sum;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context,
      torch::autograd::variable_list gradients) {
    at::Tensor sum = gradients[0].clone(at::MemoryFormat::Contiguous);
    auto* group = reinterpret_cast<c10d::ProcessGroup*>(context->saved_data["group"].toInt());
    all_reduce(*group, sum, c10d::ReduceOp::SUM);
    return {sum, at::Tensor()};
  }
};

} // namespace

extern "C" {

const char* shoal_c10d_error() {
  return last_error.c_str();
}

// A client of the store at `host`:`port`, which this process keeps itself if `is_server`; port 0 is any, and `*taken` the one it got.
int shoal_store_tcp(
    const char* host,
    uint16_t port,
    bool is_server,
    int64_t timeout_ms,
    uint16_t* taken,
    StoreBox** made) {
  return guarded([&] {
    // What its warnings tell comes as an error too, without the frames of C++.
    if (!getenv("TORCH_CPP_LOG_LEVEL")) {
      FLAGS_caffe2_log_level = c10::GLOG_ERROR;
    }
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = is_server;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    *taken = store->getPort();
    *made = new StoreBox{store};
  });
}

// The same store under names that begin with `prefix`.
int shoal_store_under(StoreBox* box, const char* prefix, StoreBox** made) {
  return guarded([&] { *made = new StoreBox{c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), box->store)}; });
}

// A connection of its own to the same store: while one waits, another is free.
int shoal_store_clone(StoreBox* box, StoreBox** made) {
  return guarded([&] { *made = new StoreBox{box->store->clone()}; });
}

int shoal_store_set(StoreBox* box, const char* key, const uint8_t* value, size_t length) {
  return guarded([&] { box->store->set(std::string(key), Bytes(value, value + length)); });
}

// Waits for the key; its value goes to `take` of `context`.
int shoal_store_get(StoreBox* box, const char* key, void (*take)(void*, const uint8_t*, size_t), void* context) {
  return guarded([&] {
    Bytes value = box->store->get(std::string(key));
    take(context, value.data(), value.size());
  });
}

int shoal_store_has(StoreBox* box, const char* key, bool* found) {
  return guarded([&] { *found = box->store->check({std::string(key)}); });
}

int shoal_store_add(StoreBox* box, const char* key, int64_t amount, int64_t* sum) {
  return guarded([&] { *sum = box->store->add(std::string(key), amount); });
}

void shoal_store_free(StoreBox* box) {
  guarded([&] { delete box; });
}

// A group over gloo, bound to the address `host` or, where that is null, to the interface that gloo finds. `cuda`, where it is not
// null, makes the backend for tensors on a CUDA device.
int shoal_group_new(
    StoreBox* box,
    int rank,
    int size,
    int64_t timeout_ms,
    const char* host,
    ShoalBackendMaker cuda,
    GroupBox** made) {
  return guarded([&] {
    const milliseconds timeout(timeout_ms);
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    options->devices.push_back(
        host ? c10d::ProcessGroupGloo::createDeviceForHostname(host) : c10d::ProcessGroupGloo::createDefaultDevice());
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(box->store, rank, size, options);
    auto group = c10::make_intrusive<c10d::ProcessGroup>(box->store, rank, size);
    group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, gloo);
    group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
    if (cuda) {
      auto nccl = intrusive_ptr<c10d::Backend>::reclaim(cuda(box->store.get(), rank, size, timeout_ms));
      group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::BackendType::NCCL, nccl);
    }
    *made = new GroupBox{group};
  });
}

int shoal_all_reduce(GroupBox* box, at::Tensor* tensor, int op) {
  return guarded([&] { all_reduce(*box->group, *tensor, reduce_op(op)); });
}

int shoal_broadcast(GroupBox* box, at::Tensor* tensor, int root) {
  return guarded([&] {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    box->group->broadcast(tensors, options)->wait();
  });
}

// `all` holds as many parts as there are ranks, each of the shape of `part`.
int shoal_all_gather(GroupBox* box, at::Tensor* all, at::Tensor* part) {
  return guarded([&] {
    if (shoal::is_small(*part)) {
      shoal::all_gather_in_few_hops(*box->group, *all, *part);
      return;
    }
    box->group->_allgather_base(*all, *part)->wait();
  });
}

// Rows of `from`, `sends[r]` of them for each rank `r` in turn, become rows of `to`, `takes[r]` from each.
int shoal_all_to_all(GroupBox* box, at::Tensor* to, at::Tensor* from, const int64_t* takes, const int64_t* sends) {
  return guarded([&] {
    const int size = box->group->getSize();
    std::vector<int64_t> taken(takes, takes + size), sent(sends, sends + size);
    box->group->alltoall_base(*to, *from, taken, sent)->wait();
  });
}

int shoal_sum_over_ranks(GroupBox* box, at::Tensor* part, at::Tensor** sum) {
  return guarded([&] {
    *sum = new at::Tensor(SumOverRanks::apply(*part, reinterpret_cast<int64_t>(box->group.get())));
  });
}

void shoal_group_free(GroupBox* box) {
  guarded([&] { delete box; });
}

// Averages the gradients of `count` weights over all ranks during each backward pass that `shoal_reducer_prepare` announces, in
// buckets of `bucket_bytes`: the first of 1 MiB, so that it is soon on its way.
int shoal_reducer_new(GroupBox* box, at::Tensor** weights, size_t count, int64_t bucket_bytes, ReducerBox** made) {
  return guarded([&] {
    const int64_t first_bytes = 1 << 20;
    std::vector<at::Tensor> parameters;
    for (size_t index = 0; index < count; ++index) {
      parameters.push_back(*weights[index]);
    }
    const std::vector<bool> sparse(count, false);
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(
        parameters, {static_cast<size_t>(first_bytes), static_cast<size_t>(bucket_bytes)}, sparse, {}, {});
    // Gradients come from the last layer to the first.
    std::reverse(buckets.begin(), buckets.end());
    *made = new ReducerBox{std::make_unique<c10d::Reducer>(
        parameters,
        buckets,
        box->group,
        sparse,
        bucket_bytes,
        /*find_unused_parameters=*/false,
        /*gradient_as_bucket_view=*/true,
        std::unordered_map<size_t, std::string>(),
        first_bytes,
        /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false,
        std::vector<int64_t>())};
  });
}

int shoal_reducer_prepare(ReducerBox* box) {
  return guarded([&] {
    box->reducer->rebuild_buckets();
    box->reducer->prepare_for_forward();
    box->reducer->prepare_for_backward({});
  });
}

void shoal_reducer_free(ReducerBox* box) {
  guarded([&] {
    box->reducer->remove_autograd_hooks();
    delete box;
  });
}

} // extern "C"
