// A chunk of a recurrent layer on a processor: all time steps, forward and backward.
//
// Every thread has rows (sequences) of its own for the whole chunk, so that no step waits for another thread. A product
// is never stored: R rows times the gates of one block of units fill the registers, and gates, state and output are made
// of them there. Written for GCC and Clang, whose vector types become whatever the processor has.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#include <omp.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// The arguments of both passes, in the order of the Python side. Every matrix lies row by row without gaps.
struct Job {
    // sizes: T, B, D, H, threads
    int64_t steps, batch, inputs, hidden, threads;
    // (T, B, D), (G H, D), (G H, H), (G H), (G H), (B, H), (B, H)
    const void *x, *weight_ih, *weight_hh, *bias_ih, *bias_hh, *first_hidden, *first_memory;
    // (T, B, H), (T, B, H), (T, B, A H): outputs, memories of an LSTM, gates after their nonlinearities
    void *outputs, *memories, *gates;
    // backward: (T, B, H), (B, H), (B, H)
    const void *to_outputs, *to_hidden, *to_memory;
    // (T, B, A H) of the products' type, (B, H), (B, H), (A H), (A H, D) or null
    void *from_gates, *from_hidden, *from_memory, *from_bias, *from_weight_ih;
    // (T, B, H): hidden states before each step in bfloat16, for the weights' gradient
    void *hidden_before;
};

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 6;
#elif defined(__AVX2__)
constexpr int BYTES = 32, ROWS = 3;  // 16 registers
#else
constexpr int BYTES = 16, ROWS = 4;
#endif

template <class Real> struct Simd {
    typedef Real Vector __attribute__((vector_size(BYTES)));
    static constexpr int64_t lanes = BYTES / sizeof(Real);
};
using Floats = Simd<float>::Vector;
using Doubles = Simd<double>::Vector;
typedef int32_t Ints __attribute__((vector_size(BYTES)));

template <class Real> inline typename Simd<Real>::Vector load(const Real *from) {
    typename Simd<Real>::Vector vector;
    std::memcpy(&vector, from, BYTES);
    return vector;
}
// the first `count` numbers, and zeros
template <class Real> inline typename Simd<Real>::Vector load(const Real *from, int64_t count) {
    if (count >= Simd<Real>::lanes) return load(from);
    typename Simd<Real>::Vector vector = {};
    std::memcpy(&vector, from, count * sizeof(Real));
    return vector;
}
template <class Vector, class Real> inline void store(Real *to, Vector vector, int64_t count) {
    if (count >= Simd<Real>::lanes) std::memcpy(to, &vector, BYTES);
    else std::memcpy(to, &vector, count * sizeof(Real));
}

// -- nonlinearities --------------------------------------------------------------------------------------------------

inline Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
    const Floats guess = (Floats)_mm512_rcp14_ps((__m512)x);  // 14 bits; one step of Newton's doubles them
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// exp(x) = 2^n exp(r) with |r| <= ln 2 / 2: returns 2^n and exp(r) - 1, by its Taylor series
inline void split_exponential(Floats x, Floats &power, Floats &rest) {
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds, n is in the low bits
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    power = (Floats)(((Ints)shifted << 23) + 0x3f800000);
    Floats sum = r * (1.0f / 5040) + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    rest = sum * (r * r) + r;
}
// a comparison with NaN is false: NaN stays what it is
inline Floats clamp(Floats x, float limit) {
    x = x > limit ? Floats{} + limit : x;
    return x < -limit ? Floats{} - limit : x;
}
inline Floats sigmoid(Floats x) {
    Floats power, rest;
    split_exponential(clamp(-x, 87.0f), power, rest);
    return reciprocal(1.0f + (power * rest + power));
}
inline Floats tanh(Floats x) {
    Floats power, rest;
    split_exponential(clamp(2.0f * x, 40.0f), power, rest);
    const Floats minus_one = power * rest + (power - 1.0f);  // exp(2x) - 1, without cancellation near 0
    return minus_one * reciprocal(minus_one + 2.0f);
}
inline Doubles sigmoid(Doubles x) {
    for (int lane = 0; lane < Simd<double>::lanes; ++lane) x[lane] = 1.0 / (1.0 + std::exp(-x[lane]));
    return x;
}
inline Doubles tanh(Doubles x) {
    for (int lane = 0; lane < Simd<double>::lanes; ++lane) x[lane] = std::tanh(x[lane]);
    return x;
}

// -- products --------------------------------------------------------------------------------------------------------

// A product adds numbers of a row times vectors of a matrix; `depth` numbers at once, which lie side by side.
template <class Number> struct Product {
    using Real = Number;
    using Element = Number;
    static constexpr int64_t depth = 1;
    using Packed = typename Simd<Real>::Vector;
    static Packed fetch(const Element *from) { return load(from); }
    static typename Simd<Real>::Vector add(typename Simd<Real>::Vector sum, const Element *row, Packed matrix) {
        return sum + *row * matrix;
    }
    static Element round(Real number) { return number; }
    static void store_rounded(Element *to, typename Simd<Real>::Vector vector, int64_t count) {
        store(to, vector, count);
    }
};

inline uint16_t to_bfloat16(float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;  // NaN stays NaN
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;                 // to nearest, ties to even
}

#if defined(__AVX512BF16__)
#define HAS_BFLOAT16 1
struct BFloat16Product {
    using Real = float;
    using Element = uint16_t;
    static constexpr int64_t depth = 2;
    using Packed = __m512bh;
    static Packed fetch(const Element *from) {
        Packed packed;
        std::memcpy(&packed, from, BYTES);
        return packed;
    }
    static Floats add(Floats sum, const Element *row, Packed matrix) {
        int32_t pair;
        std::memcpy(&pair, row, 4);
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), matrix);
    }
    static Element round(Real number) { return to_bfloat16(number); }
    static void store_rounded(Element *to, Floats vector, int64_t count) {
        const __m256bh rounded = _mm512_cvtneps_pbh((__m512)vector);
        std::memcpy(to, &rounded, std::min<int64_t>(count, 16) * 2);
    }
};
#else
#define HAS_BFLOAT16 0
#endif

// sums[r][g] += Σ_k rows[r][k] matrix[k][which[g]]
template <class P, int R, int N>
inline void multiply(typename Simd<typename P::Real>::Vector (&sums)[R][N], const typename P::Element *rows, int64_t stride,
                     const typename P::Element *matrix, int64_t length) {
    constexpr int64_t wide = Simd<typename P::Real>::lanes * P::depth;
    for (int64_t k = 0; k < length; ++k) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const typename P::Packed column = P::fetch(matrix + (k * N + n) * wide);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sums[r][n] = P::add(sums[r][n], rows + r * stride + k * P::depth, column);
        }
    }
}

// Pack columns of a matrix, element(k, lane of column n), as `multiply` reads them.
template <class P, class Element>
void pack(typename P::Element *to, int64_t depth, int64_t columns, Element element) {
    constexpr int64_t lanes = Simd<typename P::Real>::lanes;
    for (int64_t k = 0; k < depth; k += P::depth)
        for (int64_t n = 0; n < columns; ++n)
            for (int64_t lane = 0; lane < lanes; ++lane)
                for (int64_t d = 0; d < P::depth; ++d) *to++ = P::round(k + d < depth ? element(k + d, n, lane) : 0);
}

inline int64_t ceiling(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// Call for all rows, as many at once as the registers hold.
template <class Function> inline void in_blocks(int64_t rows, Function function) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) function(std::integral_constant<int, ROWS>(), row);
    if constexpr (ROWS > 4)
        for (; row + 4 <= rows; row += 4) function(std::integral_constant<int, 4>(), row);
    for (; row + 2 <= rows; row += 2) function(std::integral_constant<int, 2>(), row);
    for (; row < rows; ++row) function(std::integral_constant<int, 1>(), row);
}

// -- cells -----------------------------------------------------------------------------------------------------------

// A cell has `sums` sums a unit, of products and biases: the first `gates` of them take part in the products with the
// hidden state, the last `gates` in those with the input. `forward` turns them into what the backward pass wants to find
// (the first `saved` of them), the output and the memory; `backward` turns those into the gradients of the sums.

struct LSTM {
    static constexpr int sums = 4, gates = 4, saved = 4;
    static constexpr bool has_memory = true;
    template <class V> static void forward(V *sum, V, V memory, V &output, V &next) {
        sum[0] = sigmoid(sum[0]), sum[1] = sigmoid(sum[1]), sum[2] = tanh(sum[2]), sum[3] = sigmoid(sum[3]);
        next = sum[1] * memory + sum[0] * sum[2];
        output = sum[3] * tanh(next);
    }
    template <class V> static void backward(const V *saved, V, V, V before, V now, V to_output, V &to_memory, V &, V *to) {
        const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], squashed = tanh(now);
        const V inner = to_memory + to_output * o * (1 - squashed * squashed);
        to[0] = inner * g * i * (1 - i), to[1] = inner * before * f * (1 - f);
        to[2] = inner * i * (1 - g * g), to[3] = to_output * squashed * o * (1 - o);
        to_memory = inner * f;
    }
};

// The gates are r, z, n, the sums n from the hidden state (which r multiplies), r, z, n from the input.
struct GRU {
    static constexpr int sums = 4, gates = 3, saved = 4;
    static constexpr bool has_memory = false;
    template <class V> static void forward(V *sum, V before, V, V &output, V &) {
        sum[1] = sigmoid(sum[1]), sum[2] = sigmoid(sum[2]), sum[3] = tanh(sum[3] + sum[1] * sum[0]);
        output = sum[3] + sum[2] * (before - sum[3]);
    }
    template <class V> static void backward(const V *saved, V before, V, V, V, V to_output, V &, V &direct, V *to) {
        const V from_hidden = saved[0], r = saved[1], z = saved[2], n = saved[3];
        to[3] = to_output * (1 - z) * (1 - n * n);
        to[2] = to_output * (before - n) * z * (1 - z);
        to[1] = to[3] * from_hidden * r * (1 - r);
        to[0] = to[3] * r;
        direct = to_output * z;
    }
};

struct RNN {
    static constexpr int sums = 1, gates = 1, saved = 0;
    static constexpr bool has_memory = false;
    template <class V> static void forward(V *sum, V, V, V &output, V &) { output = tanh(sum[0]); }
    template <class V> static void backward(const V *, V, V output, V, V, V to_output, V &, V &, V *to) {
        to[0] = to_output * (1 - output * output);
    }
};

// -- memory ----------------------------------------------------------------------------------------------------------

// A thread's own, kept from one chunk to the next: nothing in it outlives a call.
class Workspace {
  public:
    void begin(size_t bytes) {
        if (memory_.size() < bytes + 64) memory_.resize(bytes + 64);
        next_ = reinterpret_cast<char *>(ceiling(reinterpret_cast<intptr_t>(memory_.data()), 64));
    }
    template <class Element> Element *take(int64_t count) {
        char *taken = next_;
        next_ += bytes<Element>(count);
        return reinterpret_cast<Element *>(taken);
    }
    template <class Element> static size_t bytes(int64_t count) { return ceiling(count * sizeof(Element), 64); }

  private:
    std::vector<char> memory_;
    char *next_ = nullptr;
};
thread_local Workspace shared, own;

// -- the passes ------------------------------------------------------------------------------------------------------

template <class C, class P> struct Layer {
    using Real = typename P::Real;
    using Element = typename P::Element;
    using V = typename Simd<Real>::Vector;
    static constexpr int64_t lanes = Simd<Real>::lanes;
    static constexpr int G = C::gates, first_input = C::sums - G;
    static constexpr int panel = 4;  // vectors of hidden units at once in the backward product
    static constexpr bool rounds = P::depth > 1;

    const Job &job;
    const int64_t T = job.steps, B = job.batch, D = job.inputs, H = job.hidden;
    const int64_t blocks = ceiling(H, lanes) / lanes;
    const int64_t hidden_depth = ceiling(H, P::depth), input_depth = ceiling(D, P::depth);
    const int threads = static_cast<int>(std::max<int64_t>(1, std::min(job.threads, B)));

    template <class Type> static Type *at(void *pointer) { return static_cast<Type *>(pointer); }
    template <class Type> static const Type *at(const void *pointer) { return static_cast<const Type *>(pointer); }

    void forward() const {
        const int64_t hidden_block = hidden_depth * G * lanes, input_block = input_depth * G * lanes;
        shared.begin(Workspace::bytes<Element>(blocks * hidden_block) + Workspace::bytes<Element>(blocks * input_block) +
                     Workspace::bytes<Real>(blocks * C::sums * lanes));
        Element *from_hidden = shared.take<Element>(blocks * hidden_block);
        Element *from_input = shared.take<Element>(blocks * input_block);
        Real *bias = shared.take<Real>(blocks * C::sums * lanes);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
#pragma omp for
            for (int64_t block = 0; block < blocks; ++block) {
                pack_hidden(from_hidden + block * hidden_block, block);
                pack_input(from_input + block * input_block, block);
                pack_bias(bias + block * C::sums * lanes, block);
            }
            const int thread = omp_get_thread_num(), team = omp_get_num_threads();
            forward_rows(B * thread / team, B * (thread + 1) / team, from_hidden, from_input, bias);
        }
    }

    // the gate, in the order of the weights, of a sum of products with the hidden state
    static int64_t hidden_gate(int64_t sum) { return (sum + G - first_input) % G; }

    void pack_hidden(Element *to, int64_t block) const {
        const Real *weight = at<Real>(job.weight_hh);
        pack<P>(to, H, G, [=, this](int64_t k, int64_t gate, int64_t lane) {
            const int64_t unit = block * lanes + lane;
            return unit < H ? weight[(hidden_gate(gate) * H + unit) * H + k] : 0;
        });
    }
    void pack_input(Element *to, int64_t block) const {
        const Real *weight = at<Real>(job.weight_ih);
        pack<P>(to, D, G, [=, this](int64_t k, int64_t gate, int64_t lane) {
            const int64_t unit = block * lanes + lane;
            return unit < H ? weight[(gate * H + unit) * D + k] : 0;
        });
    }
    void pack_bias(Real *to, int64_t block) const {
        const Real *input = at<Real>(job.bias_ih), *hidden = at<Real>(job.bias_hh);
        for (int64_t sum = 0; sum < C::sums; ++sum)
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const int64_t unit = block * lanes + lane;
                Real total = 0;
                if (unit < H && sum < G) total += hidden[hidden_gate(sum) * H + unit];
                if (unit < H && sum >= first_input) total += input[(sum - first_input) * H + unit];
                *to++ = total;
            }
    }

    void forward_rows(int64_t begin, int64_t end, const Element *from_hidden, const Element *from_input,
                      const Real *bias) const {
        const int64_t rows = end - begin;
        if (rows == 0) return;
        // in bfloat16 the products read rounded copies: of the state before a step, beside that after it, and of x
        own.begin(rounds ? 2 * Workspace::bytes<Element>(rows * hidden_depth) + Workspace::bytes<Element>(rows * input_depth)
                         : 0);
        Element *rounded[2] = {}, *rounded_x = nullptr;
        if constexpr (rounds) {
            for (auto &copy : rounded) {
                copy = own.take<Element>(rows * hidden_depth);
                std::fill_n(copy, rows * hidden_depth, Element(0));
            }
            rounded_x = own.take<Element>(rows * input_depth);
            round_rows(rounded[0], at<Real>(job.first_hidden) + begin * H, rows, H, hidden_depth);
        }
        const int64_t hidden_stride = rounds ? hidden_depth : H, input_stride = rounds ? input_depth : D;
        for (int64_t t = 0; t < T; ++t) {
            const int64_t first = t * B + begin;
            const Real *before = t ? at<Real>(job.outputs) + (first - B) * H : at<Real>(job.first_hidden) + begin * H;
            const Real *x = at<Real>(job.x) + first * D;
            const Element *hidden_rows, *input_rows;
            Element *next = rounded[(t + 1) % 2];
            if constexpr (rounds) {
                round_rows(rounded_x, x, rows, D, input_depth);
                hidden_rows = rounded[t % 2], input_rows = rounded_x;
                if (job.hidden_before)
                    for (int64_t row = 0; row < rows; ++row)
                        std::memcpy(at<Element>(job.hidden_before) + (first + row) * H, hidden_rows + row * hidden_depth,
                                    H * sizeof(Element));
            } else {
                hidden_rows = before, input_rows = x;
            }
            const Real *memory = nullptr;
            Real *next_memory = nullptr;
            if (C::has_memory) {
                // without a backward pass the memory is one row of states, changed in place
                memory = t ? at<Real>(job.memories) + (job.gates ? first - B : begin) * H
                           : at<Real>(job.first_memory) + begin * H;
                next_memory = at<Real>(job.memories) + (job.gates ? first : begin) * H;
            }
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t unit = block * lanes, count = std::min(lanes, H - unit);
                const Element *hidden_panel = from_hidden + block * hidden_depth * G * lanes;
                const Element *input_panel = from_input + block * input_depth * G * lanes;
                const Real *own_bias = bias + block * C::sums * lanes;
                in_blocks(rows, [&](auto size, int64_t row) {
                    constexpr int R = size;
                    V hidden[R][G], input[R][G];  // one and the same where all sums take both
                    for (int r = 0; r < R; ++r)
                        for (int n = 0; n < G; ++n) {
                            hidden[r][n] = load(own_bias + n * lanes);
                            input[r][n] = n + first_input < G ? V{} : load(own_bias + (n + first_input) * lanes);
                        }
                    multiply<P>(hidden, hidden_rows + row * hidden_stride, hidden_stride, hidden_panel,
                                hidden_depth / P::depth);
                    multiply<P>(first_input ? input : hidden, input_rows + row * input_stride, input_stride, input_panel,
                                input_depth / P::depth);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        V sum[C::sums], output, now = {};
                        for (int n = 0; n < G; ++n) sum[n] = hidden[r][n];
                        if constexpr (first_input > 0) {
                            for (int n = 0; n < first_input; ++n) sum[G + n] = input[r][G - first_input + n];
                            for (int n = first_input; n < G; ++n) sum[n] += input[r][n - first_input];
                        }
                        const int64_t place = (row + r) * H + unit;
                        C::forward(sum, load(before + place, count), C::has_memory ? load(memory + place, count) : V{},
                                   output, now);
                        store(at<Real>(job.outputs) + first * H + place, output, count);
                        if (C::has_memory) store(next_memory + place, now, count);
                        if constexpr (rounds) P::store_rounded(next + (row + r) * hidden_depth + unit, output, count);
                        if (job.gates) {
                            Real *gates = at<Real>(job.gates) + (first + row + r) * C::saved * H + unit;
                            for (int n = 0; n < C::saved; ++n) store(gates + n * H, sum[n], count);
                        }
                    }
                });
            }
        }
    }

    static void round_rows(Element *to, const Real *from, int64_t rows, int64_t length, int64_t stride) {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t k = 0; k < stride; ++k)
                to[row * stride + k] = k < length ? P::round(from[row * length + k]) : Element(0);
    }

    void backward() const {
        const int64_t depth = G * H;  // even in bfloat16, since H is
        const int64_t num_sums = C::sums * H * (job.from_weight_ih ? 1 + D : 1);
        shared.begin(Workspace::bytes<Element>(depth * blocks * lanes) + Workspace::bytes<Real>(num_sums * threads));
        Element *weight = shared.take<Element>(depth * blocks * lanes);
        Real *sums = shared.take<Real>(num_sums * threads);
        int team = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
#pragma omp for
            for (int64_t block = 0; block < blocks; block += panel) {
                const int64_t width = std::min<int64_t>(panel, blocks - block);
                const Real *weight_hh = at<Real>(job.weight_hh);
                pack<P>(weight + block * lanes * depth, depth, width, [=, this](int64_t k, int64_t n, int64_t lane) {
                    const int64_t unit = (block + n) * lanes + lane;
                    return unit < H ? weight_hh[(hidden_gate(k / H) * H + k % H) * H + unit] : 0;
                });
            }
            const int thread = omp_get_thread_num(), size = omp_get_num_threads();
            if (thread == 0) team = size;
            Real *mine = sums + thread * num_sums;
            std::fill_n(mine, num_sums, Real(0));
            backward_rows(B * thread / size, B * (thread + 1) / size, weight, mine);
        }
        Real *bias = at<Real>(job.from_bias), *weight_ih = at<Real>(job.from_weight_ih);
        for (int64_t sum = 0; sum < num_sums; ++sum) {
            Real total = 0;
            for (int thread = 0; thread < team; ++thread) total += sums[thread * num_sums + sum];
            if (sum < C::sums * H) bias[sum] = total;
            else weight_ih[sum - C::sums * H] = total;  // (D, A H)
        }
    }

    void backward_rows(int64_t begin, int64_t end, const Element *weight, Real *sums) const {
        const int64_t rows = end - begin;
        if (rows == 0) return;
        Real *to_hidden = at<Real>(job.from_hidden) + begin * H, *to_memory = at<Real>(job.from_memory) + begin * H;
        copy_rows(to_hidden, job.to_hidden, begin, rows);
        if (C::has_memory) copy_rows(to_memory, job.to_memory, begin, rows);
        for (int64_t t = T - 1; t >= 0; --t) {
            const int64_t first = t * B + begin;
            const Real *outputs = at<Real>(job.outputs) + first * H, *to_outputs = at<Real>(job.to_outputs) + first * H;
            const Real *before = t ? outputs - B * H : at<Real>(job.first_hidden) + begin * H;
            const Real *memory = nullptr, *memory_before = nullptr;
            if (C::has_memory) {
                memory = at<Real>(job.memories) + first * H;
                memory_before = t ? memory - B * H : at<Real>(job.first_memory) + begin * H;
            }
            Element *to_sums = at<Element>(job.from_gates) + first * C::sums * H;
            for (int64_t row = 0; row < rows; ++row) {
                const Real *gates = at<Real>(job.gates) + (first + row) * C::saved * H;
                const Real *x = at<Real>(job.x) + (first + row) * D;
                for (int64_t unit = 0; unit < H; unit += lanes) {
                    const int64_t count = std::min(lanes, H - unit), place = row * H + unit;
                    V saved[C::saved + 1], to[C::sums], direct = {}, carried = {};
                    for (int n = 0; n < C::saved; ++n) saved[n] = load(gates + n * H + unit, count);
                    if (C::has_memory) carried = load(to_memory + place, count);
                    const V to_output = load(to_outputs + place, count) + load(to_hidden + place, count);
                    C::backward(saved, load(before + place, count), load(outputs + place, count),
                                C::has_memory ? load(memory_before + place, count) : V{},
                                C::has_memory ? load(memory + place, count) : V{}, to_output, carried, direct, to);
                    if (C::has_memory) store(to_memory + place, carried, count);
                    store(to_hidden + place, direct, count);
                    for (int n = 0; n < C::sums; ++n) {
                        P::store_rounded(to_sums + (row * C::sums + n) * H + unit, to[n], count);
                        Real *sum = sums + n * H + unit;
                        store(sum, load(sum, count) + to[n], count);
                        if (job.from_weight_ih)
                            for (int64_t d = 0; d < D; ++d) {
                                Real *place_of = sum + (d + 1) * C::sums * H;
                                store(place_of, load(place_of, count) + to[n] * x[d], count);
                            }
                    }
                }
            }
            multiply_back(to_hidden, to_sums, weight, rows);
        }
    }

    void copy_rows(Real *to, const void *from, int64_t begin, int64_t rows) const {
        if (from) std::memcpy(to, at<Real>(from) + begin * H, rows * H * sizeof(Real));
        else std::fill_n(to, rows * H, Real(0));
    }

    // to_hidden += to_sums W_hh, in parts of the depth whose weights fit the first cache
    void multiply_back(Real *to_hidden, const Element *to_sums, const Element *weight, int64_t rows) const {
        const int64_t depth = G * H / P::depth;
        for (int64_t block = 0; block < blocks; block += panel) {
            const int64_t width = std::min<int64_t>(panel, blocks - block);
            const Element *columns = weight + block * lanes * G * H;
            for (int64_t k = 0; k < depth; k += 128) {
                const int64_t length = std::min<int64_t>(128, depth - k);
                const Element *part = columns + k * width * lanes * P::depth;
                const auto run = [&](auto columns_at_once) {
                    constexpr int N = columns_at_once;
                    in_blocks(rows, [&](auto size, int64_t row) {
                        constexpr int R = size;
                        V sums[R][N];
                        Real *place = to_hidden + row * H + block * lanes;
                        for (int r = 0; r < R; ++r)
                            for (int n = 0; n < N; ++n)
                                sums[r][n] = load(place + r * H + n * lanes, H - (block + n) * lanes);
                        multiply<P>(sums, to_sums + row * C::sums * H + k * P::depth, C::sums * H, part, length);
                        for (int r = 0; r < R; ++r)
                            for (int n = 0; n < N; ++n)
                                store(place + r * H + n * lanes, sums[r][n], H - (block + n) * lanes);
                    });
                };
                if (width == 4) run(std::integral_constant<int, 4>());
                else if (width == 3) run(std::integral_constant<int, 3>());
                else if (width == 2) run(std::integral_constant<int, 2>());
                else run(std::integral_constant<int, 1>());
            }
        }
    }
};

template <class P> void run(const Job &job, int64_t gates, bool is_forward) {
    const auto pass = [&](auto layer) { is_forward ? layer.forward() : layer.backward(); };
    if (gates == 4) pass(Layer<LSTM, P>{job});
    else if (gates == 3) pass(Layer<GRU, P>{job});
    else pass(Layer<RNN, P>{job});
}

}  // namespace

extern "C" int has_bfloat16() { return HAS_BFLOAT16; }

// kind: 0 float32, 1 float64, 2 products in bfloat16
extern "C" void run_layer(const Job *job, int64_t kind, int64_t gates, int64_t is_forward) {
    if (kind == 0) run<Product<float>>(*job, gates, is_forward);
    else if (kind == 1) run<Product<double>>(*job, gates, is_forward);
#if HAS_BFLOAT16
    else run<BFloat16Product>(*job, gates, is_forward);
#endif
}
