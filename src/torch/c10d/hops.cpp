#include "hops.h"

#include <algorithm>
#include <vector>

namespace shoal {

namespace {

// The ring sends fewer bytes: from a few ranks on it gains by that where a tensor has some hundred KiB.
constexpr size_t kSmallBytes = 128 << 10;
// Messages between two ranks are taken in the order in which they are sent.
constexpr int kTag = 0;

c10::intrusive_ptr<c10d::Work> send(c10d::ProcessGroup& group, const at::Tensor& tensor, int to) {
  std::vector<at::Tensor> tensors{tensor};
  return group.send(tensors, to, kTag);
}

void receive(c10d::ProcessGroup& group, const at::Tensor& tensor, int from) {
  std::vector<at::Tensor> tensors{tensor};
  group.recv(tensors, from, kTag)->wait();
}

void combine(at::Tensor& sum, const at::Tensor& other, const c10d::ReduceOp& op) {
  switch (op) {
    case c10d::ReduceOp::SUM:
      sum.add_(other);
      return;
    case c10d::ReduceOp::MIN:
      at::minimum_out(sum, sum, other);
      return;
    case c10d::ReduceOp::MAX:
      at::maximum_out(sum, sum, other);
      return;
    default:
      TORCH_CHECK(false, "no such reduction in few hops");
  }
}

} // namespace

bool is_small(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.is_contiguous() && tensor.nbytes() <= kSmallBytes;
}

void all_reduce_in_few_hops(c10d::ProcessGroup& group, at::Tensor tensor, const c10d::ReduceOp& op) {
  const at::NoGradGuard no_gradients;
  const int size = group.getSize(), rank = group.getRank();
  if (tensor.numel() == 0) {
    return;
  }
  int doubled = 1;
  while (2 * doubled <= size) {
    doubled *= 2;
  }
  // Of the first ranks, as many as are too many for doubling, the even ones have the next one speak for them.
  const int spoken_for = size - doubled;
  const bool is_of_pair = rank < 2 * spoken_for;
  at::Tensor other = at::empty_like(tensor);
  if (is_of_pair && rank % 2 == 0) {
    send(group, tensor, rank + 1)->wait();
    receive(group, tensor, rank + 1);
    return;
  }
  if (is_of_pair) {
    receive(group, other, rank - 1);
    combine(tensor, other, op);
  }
  const int place = is_of_pair ? rank / 2 : rank - spoken_for;
  for (int distance = 1; distance < doubled; distance *= 2) {
    const int partner = place ^ distance;
    const int partner_rank = partner < spoken_for ? 2 * partner + 1 : partner + spoken_for;
    auto sent = send(group, tensor, partner_rank);
    receive(group, other, partner_rank);
    sent->wait();
    combine(tensor, other, op);
  }
  if (is_of_pair) {
    send(group, tensor, rank - 1)->wait();
  }
}

void all_gather_in_few_hops(c10d::ProcessGroup& group, at::Tensor all, const at::Tensor& part) {
  const at::NoGradGuard no_gradients;
  const int64_t size = group.getSize(), rank = group.getRank(), length = part.numel();
  if (length == 0) {
    return;
  }
  // The parts from this rank's on, in the order of ranks: each hop doubles how many are known.
  at::Tensor from_here = at::empty({size, length}, part.options());
  from_here.select(0, 0).copy_(part.view({-1}));
  for (int64_t known = 1; known < size; known *= 2) {
    const int64_t count = std::min(known, size - known);
    auto sent = send(group, from_here.narrow(0, 0, count), static_cast<int>((rank + size - known) % size));
    receive(group, from_here.narrow(0, known, count), static_cast<int>((rank + known) % size));
    sent->wait();
  }
  at::Tensor places = all.view({size, length});
  places.narrow(0, rank, size - rank).copy_(from_here.narrow(0, 0, size - rank));
  places.narrow(0, 0, rank).copy_(from_here.narrow(0, size - rank, rank));
}

} // namespace shoal
