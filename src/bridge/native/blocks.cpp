// Block-sparse attention on the CPU in float32: each tile of queries runs over the blocks of keys that one
// of its queries sees, in flash attention's way, and hides from a query what it does not see.
//
// Keys that lie apart are copied together first, so that products are large whatever the layout is. The
// backward pass makes the weights anew from the log-sum-exp.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "bridge.h"
#include "exponential.h"
#include "lanes.h"

// Of the BLAS in libtorch. A call costs a tenth of such a product less than one of libtorch's.
extern "C" void sgemm_(const char* turned_a, const char* turned_b, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* a_stride,
                       const float* b, const int* b_stride, const float* beta, float* c,
                       const int* c_stride);

namespace {

using namespace dsr;

// Queries of a tile, and keys that it is multiplied with at a time.
constexpr int64_t kTile = 128, kKeys = 384;

// The blocks of keys that blocks of queries see, a matrix [blocks, blocks] for each group of heads.
struct Layout {
  const uint8_t* seen;
  int64_t blocks, block;
  bool is_causal;
};

// Keys from one on, and how many.
struct Range {
  int64_t from, count;
};

// Rows in memory, of which each is whole.
struct Rows {
  float* data;
  int64_t count, width, stride;

  Rows part(int64_t from, int64_t rows) const {
    return {data + from * stride, rows, width, stride};
  }
};

// A factor of a product: rows as they are, or as columns.
struct Factor {
  const Rows& rows;
  bool is_turned;
};

Factor plain(const Rows& rows) { return {rows, false}; }
Factor turned(const Rows& rows) { return {rows, true}; }

// to = a @ b * scale, added to what is there with `adds`. BLAS has columns where these are rows.
void multiply(const Rows& to, Factor a, Factor b, float scale, bool adds) {
  const auto number = [](int64_t number) { return static_cast<int>(number); };
  const int rows = number(to.count), width = number(to.width), stride = number(to.stride);
  const int inner = number(a.is_turned ? a.rows.count : a.rows.width);
  const int a_stride = number(a.rows.stride), b_stride = number(b.rows.stride);
  const float kept = adds ? 1.0f : 0.0f;
  sgemm_(b.is_turned ? "T" : "N", a.is_turned ? "T" : "N", &width, &rows, &inner, &scale,
         b.rows.data, &b_stride, a.rows.data, &a_stride, &kept, to.data, &stride);
}

// The rows of one head of x [B, H, T, D].
Rows rows_of(const at::Tensor& x, int64_t head) {
  const int64_t heads = x.size(1);
  float* data = static_cast<float*>(x.data_ptr()) + head / heads * x.stride(0) +
                head % heads * x.stride(1);
  return {data, x.size(2), x.size(3), x.stride(2)};
}

at::Tensor whole_rows(const at::Tensor& x) {
  return x.stride(3) == 1 && x.stride(2) >= x.size(3) ? x : x.contiguous();
}

// Keys that a tile is multiplied with together.
struct Chunk {
  std::vector<Range> ranges;
  int64_t count = 0;
  // Whether each query sees all of them.
  bool is_whole = true;
};

// The queries of a tile: from the first to behind the last.
struct Tile {
  int64_t from, to;

  int64_t size() const { return to - from; }
};

// The chunks of the keys that a tile sees.
std::vector<Chunk> chunks(const Layout& layout, const Tile& tile) {
  std::vector<Chunk> made;
  const int64_t first = tile.from / layout.block, last = (tile.to - 1) / layout.block;
  const int64_t blocks = layout.is_causal ? last + 1 : layout.blocks;
  for (int64_t col = 0; col < blocks; ++col) {
    int64_t seeing = 0;
    for (int64_t row = first; row <= last; ++row) seeing += layout.seen[row * layout.blocks + col];
    if (seeing == 0) continue;
    int64_t from = col * layout.block, end = from + layout.block;
    if (layout.is_causal) end = std::min(end, tile.to);
    const bool is_whole =
        seeing == last - first + 1 && (!layout.is_causal || end <= tile.from + 1);
    while (from < end) {
      if (made.empty() || made.back().count == kKeys) made.emplace_back();
      Chunk& chunk = made.back();
      const int64_t count = std::min(end - from, kKeys - chunk.count);
      auto& ranges = chunk.ranges;
      if (!ranges.empty() && ranges.back().from + ranges.back().count == from) {
        ranges.back().count += count;
      } else {
        ranges.push_back({from, count});
      }
      chunk.count += count;
      chunk.is_whole &= is_whole;
      from += count;
    }
  }
  return made;
}

// Hides the scores [queries, keys] of keys that a query does not see.
void hide(const Layout& layout, const Tile& tile, const Chunk& chunk, float* scores) {
  if (chunk.is_whole) return;
  for (int64_t query = tile.from; query < tile.to; ++query, scores += chunk.count) {
    const uint8_t* seen = layout.seen + query / layout.block * layout.blocks;
    float* of_range = scores;
    for (const Range& range : chunk.ranges) {
      const int64_t end = range.from + range.count;
      for (int64_t key = range.from; key < end;) {
        const int64_t behind = std::min(end, (key / layout.block + 1) * layout.block);
        int64_t visible = seen[key / layout.block] ? behind : key;
        if (layout.is_causal) visible = std::clamp(query + 1, key, visible);
        std::fill(of_range + (visible - range.from), of_range + (behind - range.from), -INFINITY);
        key = behind;
      }
      of_range += range.count;
    }
  }
}

// The rows of a chunk's keys: where they lie, or in `copy` where they lie apart.
Rows gather(const Rows& x, const Chunk& chunk, std::vector<float>& copy) {
  if (chunk.ranges.size() == 1) return x.part(chunk.ranges[0].from, chunk.count);
  float* to = copy.data();
  for (const Range& range : chunk.ranges) {
    for (int64_t key = range.from; key < range.from + range.count; ++key, to += x.width) {
      std::copy_n(x.data + key * x.stride, x.width, to);
    }
  }
  return {copy.data(), chunk.count, x.width, x.width};
}

// Adds the rows of a chunk's keys to those of all.
void scatter(const Rows& x, const Chunk& chunk, const Rows& part) {
  if (part.data == x.data + chunk.ranges[0].from * x.stride) return;
  const float* from = part.data;
  for (const Range& range : chunk.ranges) {
    for (int64_t key = range.from; key < range.from + range.count; ++key, from += x.width) {
      float* to = x.data + key * x.stride;
      for (int64_t d = 0; d < x.width; ++d) to[d] += from[d];
    }
  }
}

// What a query has seen so far: the largest score, and the sum of the weights beside it.
struct Seen {
  float most, sum;
};

// Makes the scores of a row weights, and adds them to what was seen; `out` are the values so far.
INLINE void weigh(float* scores, int64_t count, Seen& seen, float* out, int64_t width) {
  Lanes highest = Lanes{} + seen.most;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes score = load(scores + i);
    highest = score > highest ? score : highest;
  }
  float most = seen.most;
  for (; i < count; ++i) most = std::max(most, scores[i]);
  for (int j = 0; j < kLanes; ++j) most = std::max(most, highest[j]);
  Lanes sums{};
  for (i = 0; i + kLanes <= count; i += kLanes) {
    Lanes weight = load(scores + i);
    make_weight(weight, most);
    store(scores + i, weight);
    sums += weight;
  }
  if (i < count) {
    float rest[kLanes];
    std::fill(rest, rest + kLanes, -INFINITY);
    std::copy(scores + i, scores + count, rest);
    Lanes weight = load(rest);
    make_weight(weight, most);
    store(rest, weight);
    std::copy(rest, rest + (count - i), scores + i);
    sums += weight;
  }
  if (most > seen.most) {
    const float factor = std::exp(seen.most - most);
    seen.sum *= factor;
    for (int64_t d = 0; d < width; ++d) out[d] *= factor;
  }
  seen = {most, seen.sum + sum(sums)};
}

FOR_EACH_MACHINE void weigh_rows(float* scores, int64_t queries, int64_t keys, Seen* seen,
                                 float* out, int64_t width) {
  for (int64_t i = 0; i < queries; ++i) {
    weigh(scores + i * keys, keys, seen[i], out + i * width, width);
  }
}

// Makes scores weights beside their log-sum-exp, and the gradients of weights those of scores before they
// were scaled.
INLINE void weigh_back(float* scores, float* grads, int64_t count, float sums, float delta,
                       float scale) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Lanes weight = load(scores + i);
    make_weight(weight, sums);
    store(scores + i, weight);
    store(grads + i, weight * (load(grads + i) - delta) * scale);
  }
  if (i < count) {
    float rest[kLanes] = {};
    std::copy(scores + i, scores + count, rest);
    Lanes weight = load(rest);
    make_weight(weight, sums);
    store(rest, weight);
    for (int64_t j = i; j < count; ++j) {
      scores[j] = rest[j - i];
      grads[j] = scores[j] * (grads[j] - delta) * scale;
    }
  }
}

FOR_EACH_MACHINE void weigh_rows_back(float* scores, float* grads, int64_t queries, int64_t keys,
                                      const float* sums, const float* deltas, float scale) {
  for (int64_t i = 0; i < queries; ++i) {
    weigh_back(scores + i * keys, grads + i * keys, keys, sums[i], deltas[i], scale);
  }
}

// The memory of one thread.
struct Room {
  std::vector<float> scores, grads, keys, values, out, key_grads, value_grads;
  std::vector<Seen> seen;

  explicit Room(int64_t width)
      : scores(kTile * kKeys),
        keys(kKeys * width),
        values(kKeys * width),
        out(kTile * width),
        seen(kTile) {}

  void for_backward(int64_t width) {
    grads.resize(kTile * kKeys);
    key_grads.resize(kKeys * width);
    value_grads.resize(kKeys * width);
  }
};

// The scores of a tile's queries beside a chunk's keys.
Rows score(const Layout& layout, const Tile& tile, const Chunk& chunk, const Rows& q,
           const Rows& keys, float scale, Room& room) {
  const Rows scores{room.scores.data(), tile.size(), chunk.count, chunk.count};
  multiply(scores, plain(q), turned(keys), scale, false);
  hide(layout, tile, chunk, scores.data);
  return scores;
}

struct Head {
  Layout layout;
  Rows q, k, v, out;
  float* sums;
  float scale;
};

void attend(const Head& head, const Tile& tile, Room& room) {
  const int64_t width = head.v.width;
  std::fill(room.out.begin(), room.out.end(), 0.0f);
  std::fill(room.seen.begin(), room.seen.end(), Seen{-INFINITY, 0.0f});
  const Rows out{room.out.data(), tile.size(), width, width};
  const Rows q = head.q.part(tile.from, tile.size());
  for (const Chunk& chunk : chunks(head.layout, tile)) {
    const Rows keys = gather(head.k, chunk, room.keys);
    const Rows scores = score(head.layout, tile, chunk, q, keys, head.scale, room);
    weigh_rows(scores.data, tile.size(), chunk.count, room.seen.data(), out.data, width);
    const Rows values = gather(head.v, chunk, room.values);
    multiply(out, plain(scores), plain(values), 1.0f, true);
  }
  for (int64_t i = 0; i < tile.size(); ++i) {
    const Seen& seen = room.seen[i];
    head.sums[tile.from + i] = seen.most + std::log(seen.sum);
    // A query that sees nothing has zeros.
    const float whole = seen.sum == 0.0f ? 1.0f : seen.sum;
    float* to = head.out.data + (tile.from + i) * head.out.stride;
    for (int64_t d = 0; d < width; ++d) to[d] = out.data[i * width + d] / whole;
  }
}

struct Gradients {
  Rows out, q, k, v;
};

// The dot product of each query's result and its gradient.
std::vector<float> deltas(const Head& head, const Gradients& grads, const Tile& tile) {
  std::vector<float> made(tile.size());
  for (int64_t i = 0; i < tile.size(); ++i) {
    const float* a = head.out.data + (tile.from + i) * head.out.stride;
    const float* b = grads.out.data + (tile.from + i) * grads.out.stride;
    for (int64_t d = 0; d < head.out.width; ++d) made[i] += a[d] * b[d];
  }
  return made;
}

void attend_back(const Head& head, const Gradients& grads, const Tile& tile, Room& room) {
  const auto of_tile = [&](const Rows& x) { return x.part(tile.from, tile.size()); };
  const Rows q = of_tile(head.q), dq = of_tile(grads.q), grad = of_tile(grads.out);
  const auto delta = deltas(head, grads, tile);
  for (const Chunk& chunk : chunks(head.layout, tile)) {
    const Rows keys = gather(head.k, chunk, room.keys);
    const Rows values = gather(head.v, chunk, room.values);
    const Rows scores = score(head.layout, tile, chunk, q, keys, head.scale, room);
    const Rows of_weights{room.grads.data(), tile.size(), chunk.count, chunk.count};
    multiply(of_weights, plain(grad), turned(values), 1.0f, false);
    weigh_rows_back(scores.data, of_weights.data, tile.size(), chunk.count,
                    head.sums + tile.from, delta.data(), head.scale);
    const bool is_apart = chunk.ranges.size() > 1;
    const auto place = [&](const Rows& all, std::vector<float>& copy) {
      if (!is_apart) return all.part(chunk.ranges[0].from, chunk.count);
      return Rows{copy.data(), chunk.count, all.width, all.width};
    };
    const Rows dk = place(grads.k, room.key_grads), dv = place(grads.v, room.value_grads);
    multiply(dv, turned(scores), plain(grad), 1.0f, !is_apart);
    multiply(dk, turned(of_weights), plain(q), 1.0f, !is_apart);
    multiply(dq, plain(of_weights), plain(keys), 1.0f, true);
    scatter(grads.k, chunk, dk);
    scatter(grads.v, chunk, dv);
  }
}

Tile tile_of(int64_t number, int64_t tokens) {
  return {number * kTile, std::min((number + 1) * kTile, tokens)};
}

// The layout of a head, whose group is groups[head].
Layout layout_of(const at::Tensor& seen, const int64_t* groups, int64_t head, int64_t block,
                 bool is_causal) {
  const int64_t blocks = seen.size(1);
  const auto* matrices = seen.const_data_ptr<uint8_t>();
  return {matrices + groups[head] * blocks * blocks, blocks, block, is_causal};
}

}  // namespace

extern "C" {

// The attention of q to k and v, [B, H, T, D] each, float32, and the log-sum-exp of its scores, [B, H, T].
// Heads see the blocks of keys of seen[groups[head]], uint8 [groups, T / block, T / block].
int dsr_attend_blocks(at::Tensor* q, at::Tensor* k, at::Tensor* v, at::Tensor* seen,
                      const int64_t* groups, int64_t block, bool is_causal, double scale,
                      at::Tensor** out, at::Tensor** sums) {
  TRY(
    at::NoGradGuard no_grad;
    const auto queries = whole_rows(*q), keys = whole_rows(*k), values = whole_rows(*v);
    const int64_t batch = q->size(0), heads = q->size(1), tokens = q->size(2), width = q->size(3);
    // As the layers before and behind have it: tokens one after another, with all heads of each.
    auto made = at::empty({batch, tokens, heads, width}, q->options()).transpose(1, 2);
    auto all_sums = at::empty({batch, heads, tokens}, q->options());
    const int64_t tiles = (tokens + kTile - 1) / kTile;
    at::parallel_for(0, batch * heads * tiles, 1, [&](int64_t from, int64_t to) {
      Room room(width);
      for (int64_t i = from; i < to; ++i) {
        const int64_t head = i / tiles;
        const Head of{layout_of(*seen, groups, head % heads, block, is_causal),
                      rows_of(queries, head), rows_of(keys, head), rows_of(values, head),
                      rows_of(made, head), all_sums.mutable_data_ptr<float>() + head * tokens,
                      static_cast<float>(scale)};
        attend(of, tile_of(i % tiles, tokens), room);
      }
    });
    *out = new at::Tensor(std::move(made));
    *sums = new at::Tensor(std::move(all_sums));
  )
}

// The gradients of q, k and v from `grad`, that of the attention.
int dsr_attend_blocks_backward(at::Tensor* grad, at::Tensor* q, at::Tensor* k, at::Tensor* v,
                               at::Tensor* out, at::Tensor* sums, at::Tensor* seen,
                               const int64_t* groups, int64_t block, bool is_causal, double scale,
                               at::Tensor** dq, at::Tensor** dk, at::Tensor** dv) {
  TRY(
    at::NoGradGuard no_grad;
    const auto queries = whole_rows(*q), keys = whole_rows(*k), values = whole_rows(*v);
    const auto of_out = whole_rows(*grad), result = whole_rows(*out), all_sums = sums->contiguous();
    const auto zeros = [](const at::Tensor& x) {
      return at::zeros_like(x, at::MemoryFormat::Contiguous);
    };
    auto q_grad = zeros(*q), k_grad = zeros(*k), v_grad = zeros(*v);
    const int64_t heads = q->size(1), tokens = q->size(2), width = q->size(3);
    at::parallel_for(0, q->size(0) * heads, 1, [&](int64_t from, int64_t to) {
      Room room(width);
      room.for_backward(width);
      for (int64_t head = from; head < to; ++head) {
        const Head of{layout_of(*seen, groups, head % heads, block, is_causal),
                      rows_of(queries, head), rows_of(keys, head), rows_of(values, head),
                      rows_of(result, head), all_sums.mutable_data_ptr<float>() + head * tokens,
                      static_cast<float>(scale)};
        const Gradients grads{rows_of(of_out, head), rows_of(q_grad, head), rows_of(k_grad, head),
                              rows_of(v_grad, head)};
        for (int64_t tile = 0; tile * kTile < tokens; ++tile) {
          attend_back(of, grads, tile_of(tile, tokens), room);
        }
      }
    });
    *dq = new at::Tensor(std::move(q_grad));
    *dk = new at::Tensor(std::move(k_grad));
    *dv = new at::Tensor(std::move(v_grad));
  )
}

}  // extern "C"
