// What blockwise.cpp takes from src/bridge/blockwise.rs, which has the same structs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

// The codes of an average, and the scale of each block.
struct DsrAverage {
  at::Tensor* codes;
  at::Tensor* scales;
};

// The numbers of a data type of 256 codes.
struct DsrCodeTable {
  at::Tensor* values;
  at::Tensor* cells;
  int32_t zero;
  bool is_signed;
};

// The hyperparameters of one step of Adam.
struct DsrAdam {
  bool decoupled;
  double step, lr, beta1, beta2, weight_decay, eps;
};
