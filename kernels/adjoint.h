// What functions with an adjoint of their own share.

#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "rows.h"

namespace statewise {
namespace {  // every library has its own

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using Gradients = torch::autograd::variable_list;

constexpr int64_t kChunk = 256;  // rows whose sums are added up at once, by one thread

void forbid_second_derivatives(const char* op) {
  TORCH_CHECK(!at::GradMode::is_enabled(), op, " has no second derivatives: create_graph=False");
}

}  // namespace
}  // namespace statewise
