"""Fifty steps of PyTorch's optimizers: python optimizers.py > optimizers.json

The parameters are the three of PARAMS, whose elements are counted through; start and gradient of
element k are those of `start` and `gradient`, computed in float64 and rounded to float32.
`muon` has Newton-Schulz in float32 (bfloat16() replaced by a copy), `muon_bf16` as PyTorch has it.
"""

import json
import math
from unittest import mock

import torch

PARAMS = {"a.weight": (6, 10), "b.weight": (10, 4), "c.bias": (5,)}


def start(k):
    return math.sin(0.7 * k + 1.0)


def gradient(t, k):
    return math.sin(0.37 * t * (k % 17 + 1)) * 0.1 * (1 + k % 5) + 0.05 * math.cos(k + t)


def tensors(value):
    found, k = {}, 0
    for name, shape in PARAMS.items():
        n = math.prod(shape)
        found[name] = torch.tensor([value(k + i) for i in range(n)], dtype=torch.float64)
        found[name] = found[name].float().view(shape)
        k += n
    return found


def run(make):
    params = {name: torch.nn.Parameter(p) for name, p in tensors(start).items()}
    optimizers = make(params)
    for t in range(1, 51):
        for name, grad in tensors(lambda k: gradient(t, k)).items():
            params[name].grad = grad
        for optimizer in optimizers:
            optimizer.step()
    return {name: [float(f"{x:.9g}") for x in p.detach().flatten().tolist()]
            for name, p in params.items()}


def one(kind, **options):
    return run(lambda params: [kind(params.values(), **options)])


def groups(params):
    return [torch.optim.AdamW([
        {"params": [params["a.weight"]], "lr": 0.03},
        {"params": [params["b.weight"]]},
        {"params": [params["c.bias"]], "weight_decay": 0.0},
    ], lr=0.01, weight_decay=0.1)]


def muon(nesterov):
    return lambda params: [
        torch.optim.Muon([params["a.weight"], params["b.weight"]], lr=0.02, momentum=0.95,
                         weight_decay=0.1, nesterov=nesterov),
        torch.optim.AdamW([params["c.bias"]], lr=0.003, betas=(0.9, 0.95), eps=1e-10,
                          weight_decay=0.1),
    ]


adam = dict(lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
optim = torch.optim
values = {
    "adam": one(optim.Adam, **adam),
    "adamw": one(optim.AdamW, **adam),
    "adamw_groups": run(groups),
    "sgd": one(optim.SGD, lr=0.05, weight_decay=0.1),
    "sgd_momentum": one(optim.SGD, lr=0.05, weight_decay=0.1, momentum=0.9, dampening=0.2),
    "sgd_nesterov": one(optim.SGD, lr=0.05, weight_decay=0.1, momentum=0.9, nesterov=True),
    "adagrad": one(optim.Adagrad, lr=0.05, weight_decay=0.1),
    "muon_bf16": run(muon(True)),
}
with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
    values["muon"] = run(muon(True))
    values["muon_plain"] = run(muon(False))
print("{\n" + ",\n".join(f'"{name}": {json.dumps(v)}' for name, v in values.items()) + "\n}")
