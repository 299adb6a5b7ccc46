// Products of a few vectors with int8 weights, which are read as they are stored: decoding is bound by that reading.
//
//   y[n, o] = sum over groups g of scale[o, g] * (sum over i in g of x[n, i] * values[o, i])
//
// Compiled on the machine that runs it, see int8_product.py.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Words __attribute__((vector_size(4 * kLanes)));

constexpr int64_t kBlock = 8;   // rows of weights that stay in the cache for all vectors
constexpr int64_t kChunk = 64;  // rows of weights that a thread takes at a time

struct Arrays {
  const float* x;         // [vectors, inputs]
  const int8_t* values;   // [outputs, inputs]
  const float* scale;     // [outputs, groups]
  float* y;               // [vectors, outputs]
  int64_t vectors, inputs, outputs, groups;
};

inline Floats widen(const int8_t* values) {
#if defined(__AVX512F__)
  const __m512i words = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values)));
#elif defined(__AVX2__)
  const __m256i words = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(values)));
#else
  Words words;
  for (int lane = 0; lane < kLanes; ++lane) words[lane] = values[lane];
#endif
  return __builtin_convertvector((Words)words, Floats);
}

inline Floats load(const float* values) {
  Floats floats;
  std::memcpy(&floats, values, sizeof(floats));
  return floats;
}

// Writes the products of N vectors, from `n` on, with one row of weights. Sums are independent, so that additions overlap.
template <int N>
void product(const Arrays& a, int64_t n, int64_t o) {
  constexpr int kSums = N == 1 ? 4 : N == 2 ? 2 : 1;
  const int8_t* row = a.values + o * a.inputs;
  const float* x = a.x + n * a.inputs;
  const int64_t size = a.inputs / a.groups;
  Floats total[N] = {};
  float rest[N] = {};
  for (int64_t g = 0; g < a.groups; ++g) {
    const float scale = a.scale[o * a.groups + g];
    const int64_t end = (g + 1) * size;
    Floats sums[N][kSums] = {};
    int64_t i = g * size;
    for (; i + kSums * kLanes <= end; i += kSums * kLanes)
      for (int s = 0; s < kSums; ++s) {
        const Floats weights = widen(row + i + s * kLanes);
        for (int k = 0; k < N; ++k) sums[k][s] += weights * load(x + k * a.inputs + i + s * kLanes);
      }
    for (; i + kLanes <= end; i += kLanes) {
      const Floats weights = widen(row + i);
      for (int k = 0; k < N; ++k) sums[k][0] += weights * load(x + k * a.inputs + i);
    }
    for (int k = 0; k < N; ++k) {
      for (int s = 1; s < kSums; ++s) sums[k][0] += sums[k][s];
      total[k] += sums[k][0] * scale;
      float sum = 0;
      for (int64_t j = i; j < end; ++j) sum += row[j] * x[k * a.inputs + j];
      rest[k] += sum * scale;
    }
  }
  for (int k = 0; k < N; ++k) {
    float sum = rest[k];
    for (int lane = 0; lane < kLanes; ++lane) sum += total[k][lane];
    a.y[(n + k) * a.outputs + o] = sum;
  }
}

// Writes the products of all vectors with some rows of weights.
void products(const Arrays& a, int64_t first, int64_t last) {
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, last);
    int64_t n = 0;
    for (; n + 8 <= a.vectors; n += 8)
      for (int64_t o = begin; o < end; ++o) product<8>(a, n, o);
    for (; n + 4 <= a.vectors; n += 4)
      for (int64_t o = begin; o < end; ++o) product<4>(a, n, o);
    for (; n + 2 <= a.vectors; n += 2)
      for (int64_t o = begin; o < end; ++o) product<2>(a, n, o);
    for (; n < a.vectors; ++n)
      for (int64_t o = begin; o < end; ++o) product<1>(a, n, o);
  }
}

// Chunks of rows that threads take one after the other; the caller takes part, so it never waits for a thread to start.
struct Work {
  Arrays arrays;
  int64_t chunks;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;

  void run() {
    for (int64_t chunk; (chunk = next.fetch_add(1)) < chunks;) {
      products(arrays, chunk * kChunk, std::min((chunk + 1) * kChunk, arrays.outputs));
      if (done.fetch_add(1) + 1 == chunks) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }
};

ffi::Error Product(ffi::ThreadPool threads, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S8> values,
                   ffi::Buffer<ffi::F32> scale, ffi::ResultBuffer<ffi::F32> y) {
  auto work = std::make_shared<Work>();
  work->arrays = {x.typed_data(),      values.typed_data(),    scale.typed_data(),     y->typed_data(),
                  x.dimensions()[0],   x.dimensions()[1],      values.dimensions()[0], scale.dimensions()[1]};
  work->chunks = (work->arrays.outputs + kChunk - 1) / kChunk;
  const int64_t others = std::min(threads.num_threads(), work->chunks) - 1;
  for (int64_t i = 0; i < others; ++i) threads.Schedule([work] { work->run(); });
  work->run();
  std::unique_lock<std::mutex> lock(work->mutex);
  work->finished.wait(lock, [&] { return work->done.load() == work->chunks; });
  return ffi::Error::Success();
}

XLA_FFI_DEFINE_HANDLER_SYMBOL(lmjax_int8_product, Product,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S8>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
