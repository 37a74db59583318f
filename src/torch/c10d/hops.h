// Small tensors of the host, reduced and gathered in few hops.
//
// gloo passes everything round a ring of the W ranks: 2 (W - 1) hops to reduce and W - 1 to gather, however little there is to say. Of little
// that is all the time it takes. Here a gathering takes log2 W hops, rounded up, in Bruck's way, and a reduction log2 W by recursive doubling, two
// more where W is no power of two (Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH", 2005,
// sections 4.1 and 4.5). All ranks get the same bits: each hop adds the same two numbers on both of its ends.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

namespace shoal {

// Whether a tensor is so small that hops cost more than bytes, and lies where gloo can send it.
bool is_small(const at::Tensor& tensor);

void all_reduce_in_few_hops(c10d::ProcessGroup& group, at::Tensor tensor, const c10d::ReduceOp& op);

// `all` has a place for the `part` of each rank, one after the other.
void all_gather_in_few_hops(c10d::ProcessGroup& group, at::Tensor all, const at::Tensor& part);

} // namespace shoal
