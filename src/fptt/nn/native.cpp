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
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The arguments of both passes, in the order of the Python side. Every matrix lies row by row without gaps.
struct Job {
    // sizes: T, B, D, H, threads
    int64_t steps, batch, inputs, hidden, threads;
    // (T, B, D), (G H, D), (G H, H), (G H), (G H), (B, H), (B, H)
    const void *x, *weight_ih, *weight_hh, *bias_ih, *bias_hh, *first_hidden, *first_memory;
    // (T, B, H), (B, H), (B, H): outputs, and the state after the last step
    void *outputs, *last_hidden, *last_memory;
    // what the backward pass wants to find, or null: (T, H / 16, B, S, 16) where vectors have 16 numbers, so that it lies in
    // the order in which it is written and read
    void *saved;
    // backward: (T, B, H), (B, H), (B, H), or null
    const void *to_outputs, *to_hidden, *to_memory;
    // (T, B, D) or null, (G H, D), (G H, H), (G H), (G H), (B, H), (B, H)
    void *from_x, *from_weight_ih, *from_weight_hh, *from_bias_ih, *from_bias_hh, *from_hidden, *from_memory;
    // whether anybody wants the last two of them, to which the first step's product leads
    int64_t wants_state;
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
    // the numbers of two vectors side by side, as a sum over both takes them
    static void store_pairs(Element *to, Floats even, Floats odd) {
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)even));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)odd));
        const __m512i both = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
        std::memcpy(to, &both, BYTES);
    }
};

// Transpose 16 rows of 16 pairs: blocks of 1, 2, 4 and 8 change places across the diagonal.
inline void transpose_pairs(uint16_t *to, const uint16_t *from) {
    __m512i rows[16];
    for (int row = 0; row < 16; ++row) rows[row] = _mm512_loadu_si512(from + row * 32);
#pragma GCC unroll 4
    for (int size = 1; size < 16; size *= 2) {
        const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        const Ints is_upper = (lane & size) != 0;  // 0 or -1
        const __m512i upper = (__m512i)(lane + (is_upper & (16 - size)));  // from the other row: 16 and more
        const __m512i lower = (__m512i)(lane + (is_upper & 16) + (~is_upper & size));
#pragma GCC unroll 16
        for (int row = 0; row < 16; ++row) {
            if (row & size) continue;
            const __m512i one = rows[row], other = rows[row + size];
            rows[row] = _mm512_permutex2var_epi32(one, upper, other);
            rows[row + size] = _mm512_permutex2var_epi32(one, lower, other);
        }
    }
    for (int row = 0; row < 16; ++row) _mm512_storeu_si512(to + row * 32, rows[row]);
}
#else
#define HAS_BFLOAT16 0
#endif

// Intel's matrix unit: tiles of 16 rows of 64 bytes. The system has to be asked for it, once a process.
#if defined(__AVX512BF16__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_TILES 1
inline bool may_use_tiles() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return allowed;
}
struct alignas(64) TileSettings {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
// sums (16, N, 16) = the product of 16 rows, whose next 32 numbers lie `next` further, with packed columns
template <int N>
inline void multiply_tiles(float *sums, const uint16_t *rows, int64_t stride, int64_t next, const uint16_t *matrix,
                           int64_t parts) {
    _tile_zero(0);
    if constexpr (N > 1) _tile_zero(1);
    if constexpr (N > 2) _tile_zero(2);
    if constexpr (N > 3) _tile_zero(3);
    for (int64_t part = 0; part < parts; ++part) {
        const uint16_t *columns = matrix + part * 16 * N * 32;
        _tile_loadd(4, rows + part * next, stride * 2);
        _tile_loadd(5, columns, N * 64);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (N > 1) {
            _tile_loadd(6, columns + 32, N * 64);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (N > 2) {
            _tile_loadd(7, columns + 64, N * 64);
            _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (N > 3) {
            _tile_loadd(5, columns + 96, N * 64);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, sums, N * 64);
    if constexpr (N > 1) _tile_stored(1, sums + 16, N * 64);
    if constexpr (N > 2) _tile_stored(2, sums + 32, N * 64);
    if constexpr (N > 3) _tile_stored(3, sums + 48, N * 64);
}
#else
#define HAS_TILES 0
inline bool may_use_tiles() { return false; }
#endif
constexpr int64_t TILE = 16;

// sums[r][n] += Σ_k rows[r][k] matrix[k][n]
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
void pack(typename P::Element *to, int64_t depth, int64_t padded, int64_t columns, Element element) {
    constexpr int64_t lanes = Simd<typename P::Real>::lanes;
    for (int64_t k = 0; k < padded; k += P::depth)
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
// (numbers of which there are `saved`), the output and the memory; `backward` turns those into the gradients of the
// sums.

struct LSTM {
    static constexpr int sums = 4, gates = 4, saved = 5;
    static constexpr bool has_memory = true;
    template <class V> static void forward(V *sum, V, V memory, V &output, V &next) {
        sum[4] = memory;
        sum[0] = sigmoid(sum[0]), sum[1] = sigmoid(sum[1]), sum[2] = tanh(sum[2]), sum[3] = sigmoid(sum[3]);
        next = sum[1] * memory + sum[0] * sum[2];
        output = sum[3] * tanh(next);
    }
    template <class V> static void backward(const V *saved, V, V, V to_output, V &to_memory, V &, V *to) {
        const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], before = saved[4];
        const V now = f * before + i * g, squashed = tanh(now);
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
    template <class V> static void backward(const V *saved, V before, V, V to_output, V &, V &direct, V *to) {
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
    template <class V> static void backward(const V *, V, V output, V to_output, V &, V &, V *to) {
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

// The settings of the tiles, which every thread has of its own, as long as they are in use.
struct WithTiles {
    explicit WithTiles(bool in_use) : in_use_(in_use) {
#if HAS_TILES
        const TileSettings settings;
        if (in_use_) _tile_loadconfig(&settings);
#endif
    }
    ~WithTiles() {
#if HAS_TILES
        if (in_use_) _tile_release();
#endif
    }
    WithTiles(const WithTiles &) = delete;
    bool in_use_;
};

template <class C, class P> struct Layer {
    using Real = typename P::Real;
    using Element = typename P::Element;
    using V = typename Simd<Real>::Vector;
    static constexpr int64_t lanes = Simd<Real>::lanes;
    static constexpr int G = C::gates, first_input = C::sums - G;
    static constexpr int64_t panel = 4;  // vectors of hidden units at once in the backward product
    static constexpr bool rounds = P::depth > 1;

    const Job &job;
    const int64_t T = job.steps, B = job.batch, D = job.inputs, H = job.hidden;
    // numbers of a row that lie side by side in the backward pass, as a tile takes them
    static constexpr int64_t chunk = lanes * P::depth;
    const int64_t blocks = ceiling(H, chunk) / lanes;
    const int64_t hidden_depth = rounds ? ceiling(H, chunk) : H, input_depth = ceiling(D, P::depth);
    const bool tiles = rounds && may_use_tiles();
    // of what is saved: numbers of a row and a block of units, of a block, of a step
    static constexpr int64_t saved_row = C::saved * lanes;
    const int64_t saved_block = B * saved_row, saved_step = blocks * saved_block;
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
            const WithTiles settings(tiles);
            forward_rows(B * thread / team, B * (thread + 1) / team, from_hidden, from_input, bias);
        }
    }

    // the gate, in the order of the weights, of a sum of products with the hidden state
    static int64_t hidden_gate(int64_t sum) { return (sum + G - first_input) % G; }

    void pack_hidden(Element *to, int64_t block) const {
        const Real *weight = at<Real>(job.weight_hh);
        pack<P>(to, H, hidden_depth, G, [=, this](int64_t k, int64_t gate, int64_t lane) {
            const int64_t unit = block * lanes + lane;
            return unit < H ? weight[(hidden_gate(gate) * H + unit) * H + k] : 0;
        });
    }
    void pack_input(Element *to, int64_t block) const {
        const Real *weight = at<Real>(job.weight_ih);
        pack<P>(to, D, input_depth, G, [=, this](int64_t k, int64_t gate, int64_t lane) {
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
        const int64_t padded = rounds ? ceiling(rows, TILE) : rows;
        own.begin(rounds ? 2 * Workspace::bytes<Element>(padded * hidden_depth) + Workspace::bytes<Element>(rows * input_depth)
                         : 0);
        Element *rounded[2] = {}, *rounded_x = nullptr;
        if constexpr (rounds) {
            for (auto &copy : rounded) {
                copy = own.take<Element>(padded * hidden_depth);
                std::fill_n(copy, padded * hidden_depth, Element(0));
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
            } else {
                hidden_rows = before, input_rows = x;
            }
            Real *next_memory = at<Real>(job.last_memory) + begin * H;  // changed in place
            const Real *memory = t ? next_memory : at<Real>(job.first_memory) + begin * H;
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t unit = block * lanes, count = std::clamp<int64_t>(H - unit, 0, lanes);
                const Element *hidden_panel = from_hidden + block * hidden_depth * G * lanes;
                const Element *input_panel = from_input + block * input_depth * G * lanes;
                const Real *own_bias = bias + block * C::sums * lanes;
                Real *saved = at<Real>(job.saved) + t * saved_step + block * saved_block + begin * saved_row;
                alignas(64) Real products[rounds ? TILE * G * lanes : 1];
                const auto work = [&](auto size, int64_t row, const Real *product) {
                    constexpr int R = size;
                    V hidden[R][G], input[R][G];  // one and the same where all sums take both
                    for (int r = 0; r < R; ++r)
                        for (int n = 0; n < G; ++n) {
                            hidden[r][n] = load(own_bias + n * lanes);
                            input[r][n] = n + first_input < G ? V{} : load(own_bias + (n + first_input) * lanes);
                        }
                    if (rounds && product) {
                        for (int r = 0; r < R; ++r)
                            for (int n = 0; n < G; ++n) hidden[r][n] += load(product + (r * G + n) * lanes);
                    } else {
                        multiply<P>(hidden, hidden_rows + row * hidden_stride, hidden_stride, hidden_panel,
                                    hidden_depth / P::depth);
                    }
                    multiply<P>(first_input ? input : hidden, input_rows + row * input_stride, input_stride, input_panel,
                                input_depth / P::depth);
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        V sum[C::sums + C::has_memory], output, now = {};
                        for (int n = 0; n < G; ++n) sum[n] = hidden[r][n];
                        if constexpr (first_input > 0) {
                            for (int n = 0; n < first_input; ++n) sum[G + n] = input[r][G - first_input + n];
                            for (int n = first_input; n < G; ++n) sum[n] += input[r][n - first_input];
                        }
                        const int64_t place = (row + r) * H + unit;
                        C::forward(sum, load(before + place, count), C::has_memory ? load(memory + place, count) : V{},
                                   output, now);
                        store(at<Real>(job.outputs) + first * H + place, output, count);
                        __builtin_prefetch(at<Real>(job.outputs) + (first + B) * H + place, 0, 2);
                        if (C::has_memory) store(next_memory + place, now, count);
                        if constexpr (rounds) P::store_rounded(next + (row + r) * hidden_depth + unit, output, count);
                        if (job.saved) {
                            Real *here = saved + (row + r) * saved_row;
                            for (int n = 0; n < C::saved; ++n) store(here + n * lanes, sum[n], lanes);
                            // the next step writes beside it: fetched now, a store does not have to wait
                            for (int64_t n = 0; n < C::saved; ++n) __builtin_prefetch(here + saved_step + n * lanes, 0, 2);
                        }
                    }
                };
#if HAS_TILES
                if constexpr (rounds)
                    if (tiles) {
                        for (int64_t tile = 0; tile < rows; tile += TILE) {
                            multiply_tiles<G>(products, hidden_rows + tile * hidden_depth, hidden_depth, 32, hidden_panel,
                                              hidden_depth / 32);
                            in_blocks(std::min(TILE, rows - tile), [&](auto size, int64_t row) {
                                work(size, tile + row, products + row * G * lanes);
                            });
                        }
                        continue;
                    }
#endif
                in_blocks(rows, [&](auto size, int64_t row) { work(size, row, nullptr); });
            }
        }
        std::memcpy(at<Real>(job.last_hidden) + begin * H, at<Real>(job.outputs) + ((T - 1) * B + begin) * H,
                    rows * H * sizeof(Real));
    }

    static void round_rows(Element *to, const Real *from, int64_t rows, int64_t length, int64_t stride) {
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t k = 0; k < stride; ++k)
                to[row * stride + k] = k < length ? P::round(from[row * length + k]) : Element(0);
    }

    void backward() const {
        const int64_t columns = C::sums * blocks * lanes, vectors = ceiling(D, lanes) / lanes;
        const int64_t num_sums = C::sums * H * (is_narrow() ? 1 + D : 1);
        const int64_t size_hh = G * H * H, size_ih = is_narrow() ? 0 : G * H * D;
        shared.begin(Workspace::bytes<Element>(columns * blocks * lanes) +
                     Workspace::bytes<Element>(job.from_x ? columns * vectors * lanes : 0) +
                     Workspace::bytes<Real>(num_sums * threads) +
                     Workspace::bytes<Real>((size_hh + size_ih) * (threads - 1)));
        Element *weight_hh = shared.take<Element>(columns * blocks * lanes);
        Element *weight_ih = shared.take<Element>(job.from_x ? columns * vectors * lanes : 0);
        Real *sums = shared.take<Real>(num_sums * threads);
        Real *gradients = shared.take<Real>((size_hh + size_ih) * (threads - 1));
        Real *from_hh = at<Real>(job.from_weight_hh), *from_ih = at<Real>(job.from_weight_ih);
        int team = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
#pragma omp for
            for (int64_t block = 0; block < blocks; block += panel)
                pack_back(weight_hh, at<Real>(job.weight_hh), block, H, [](int64_t gate) { return hidden_gate(gate); });
            if (job.from_x)
#pragma omp for
                for (int64_t block = 0; block < vectors; block += panel)
                    pack_back(weight_ih, at<Real>(job.weight_ih), block, D, [](int64_t gate) { return gate; });
            const WithTiles settings(tiles);
            const int thread = omp_get_thread_num(), size = omp_get_num_threads();
            if (thread == 0) team = size;
            // the first thread adds up where the gradients are to be, the others in memory of their own
            Real *own_hh = thread ? gradients + (thread - 1) * (size_hh + size_ih) : from_hh;
            Real *own_ih = thread ? own_hh + size_hh : from_ih;
            std::fill_n(own_hh, size_hh, Real(0));
            std::fill_n(own_ih, size_ih, Real(0));
            std::fill_n(sums + thread * num_sums, num_sums, Real(0));
            backward_rows(B * thread / size, B * (thread + 1) / size, weight_hh, weight_ih, sums + thread * num_sums,
                          own_hh, own_ih);
#pragma omp barrier
#pragma omp for
            for (int64_t place = 0; place < size_hh + size_ih; ++place) {
                Real total = place < size_hh ? from_hh[place] : from_ih[place - size_hh];
                for (int other = 0; other + 1 < size; ++other) total += gradients[other * (size_hh + size_ih) + place];
                (place < size_hh ? from_hh[place] : from_ih[place - size_hh]) = total;
            }
        }
        for (int64_t sum = 0; sum < C::sums; ++sum)
            for (int64_t unit = 0; unit < H; ++unit) {
                const auto total = [&](int64_t part) {
                    Real all = 0;
                    for (int thread = 0; thread < team; ++thread)
                        all += sums[thread * num_sums + (part * C::sums + sum) * H + unit];
                    return all;
                };
                if (sum < G) at<Real>(job.from_bias_hh)[hidden_gate(sum) * H + unit] = total(0);
                if (sum < first_input) continue;
                const int64_t row = (sum - first_input) * H + unit;
                at<Real>(job.from_bias_ih)[row] = total(0);
                for (int64_t d = 0; is_narrow() && d < D; ++d) from_ih[row * D + d] = total(1 + d);
            }
    }

    // few inputs: their weights' gradients are added up beside those of the biases
    bool is_narrow() const { return D <= 4; }

    // Pack `panel` vectors of columns of (G H, width) weights, whose rows are taken in the order of the sums.
    template <class Gate>
    void pack_back(Element *to, const Real *weight, int64_t block, int64_t width, Gate gate_of) const {
        const int64_t depth = G * blocks * lanes, count = std::min(panel, ceiling(width, lanes) / lanes - block);
        pack<P>(to + block * lanes * depth, depth, depth, count, [=, this](int64_t k, int64_t n, int64_t lane) {
            const int64_t sum = k / (blocks * lanes), unit = k % (blocks * lanes), column = (block + n) * lanes + lane;
            return unit < H && column < width ? weight[(gate_of(sum) * H + unit) * width + column] : 0;
        });
    }

    void backward_rows(int64_t begin, int64_t end, const Element *weight_hh, const Element *weight_ih, Real *sums,
                       Real *from_hh, Real *from_ih) const {
        const int64_t rows = end - begin;
        if (rows == 0) return;
        // The gradients of the sums stay here, block by block of units: of so many steps that their product with the
        // states is worth to fetch and store the gradient of the weights for.
        const int64_t slots = std::min(T, std::max<int64_t>(1, (rounds ? 256 : 64) / rows));
        const int64_t height = rounds ? ceiling(rows, TILE) : slots * rows;
        // in bfloat16 that product sums over pairs of rows, which lie side by side in copies of both factors
        const int64_t slot_pairs = ceiling(rows, P::depth) / P::depth, pairs = rounds ? ceiling(slots * slot_pairs, TILE) : 0;
        const int64_t columns = C::sums * blocks, vectors = is_narrow() ? 0 : ceiling(D, lanes) / lanes;
        own.begin(Workspace::bytes<Element>(columns * height * lanes) + Workspace::bytes<Element>(columns * pairs * chunk) +
                  Workspace::bytes<Element>((blocks + vectors + 1) * pairs * chunk));
        Element *to_sums = own.take<Element>(columns * height * lanes);
        Element *to_pairs = own.take<Element>(columns * pairs * chunk);
        Element *hidden_pairs = own.take<Element>((blocks + vectors + 1) * pairs * chunk);
        Element *input_pairs = hidden_pairs + blocks * pairs * chunk, *transposed = input_pairs + vectors * pairs * chunk;
        Real *to_hidden = at<Real>(job.from_hidden) + begin * H, *to_memory = at<Real>(job.from_memory) + begin * H;
        copy_rows(to_hidden, job.to_hidden, begin, rows);
        if (C::has_memory) copy_rows(to_memory, job.to_memory, begin, rows);
        int64_t slot = 0;
        for (int64_t t = T - 1; t >= 0; --t) {
            Element *to_step = rounds ? to_sums : to_sums + slot * rows * chunk;
            through_cell(t, begin, rows, to_step, height, to_pairs + slot * slot_pairs * chunk, pairs, to_hidden, to_memory,
                         sums);
            if (t > 0 || job.wants_state) multiply_back(to_hidden, H, to_step, height, weight_hh, rows);
            if (job.from_x) {
                Real *to_x = at<Real>(job.from_x) + (t * B + begin) * D;
                std::fill_n(to_x, rows * D, Real(0));
                multiply_back(to_x, D, to_step + first_input * blocks * height * lanes, height, weight_ih, rows);
            }
            if constexpr (rounds) {
                pack_pairs(hidden_pairs, pairs, slot * slot_pairs, state_before(t) + begin * H, rows, H);
                if (!is_narrow())
                    pack_pairs(input_pairs, pairs, slot * slot_pairs, at<Real>(job.x) + (t * B + begin) * D, rows, D);
            }
            if (++slot < slots && t > 0) continue;
            for (int64_t gate = 0; gate < G; ++gate) {
                Real *to_hh = from_hh + hidden_gate(gate) * H * H, *to_ih = from_ih + gate * H * D;
                const int64_t hidden_sum = gate * blocks, input_sum = (gate + first_input) * blocks;
                if constexpr (rounds) {
                    add_pairs(to_hh, to_pairs + hidden_sum * pairs * chunk, pairs, slot * slot_pairs, hidden_pairs, H,
                              transposed);
                    if (!is_narrow())
                        add_pairs(to_ih, to_pairs + input_sum * pairs * chunk, pairs, slot * slot_pairs, input_pairs, D,
                                  transposed);
                } else {
                    add_products(to_hh, to_sums + hidden_sum * height * lanes, height, slot, rows, H,
                                 [&](int64_t back) { return state_before(t + slot - 1 - back) + begin * H; });
                    if (!is_narrow())
                        add_products(to_ih, to_sums + input_sum * height * lanes, height, slot, rows, D, [&](int64_t back) {
                            return at<Real>(job.x) + ((t + slot - 1 - back) * B + begin) * D;
                        });
                }
            }
            slot = 0;
        }
    }

    const Real *state_before(int64_t t) const {
        return t ? at<Real>(job.outputs) + (t - 1) * B * H : at<Real>(job.first_hidden);
    }

    void through_cell(int64_t t, int64_t begin, int64_t rows, Element *to_sums, int64_t height, Element *to_pairs,
                      int64_t pairs, Real *to_hidden, Real *to_memory, Real *sums) const {
        const int64_t first = t * B + begin;
        const Real *outputs = at<Real>(job.outputs) + first * H, *before = state_before(t) + begin * H;
        const Real *to_outputs = job.to_outputs ? at<Real>(job.to_outputs) + first * H : nullptr;
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t unit = block * lanes, count = std::clamp<int64_t>(H - unit, 0, lanes);
            const Real *saved_rows = at<Real>(job.saved) + t * saved_step + block * saved_block + begin * saved_row;
            V bias[C::sums] = {};
            for (int64_t row = 0; row < rows; row += P::depth) {
                V both[2][C::sums] = {};
                for (int64_t r = 0; r < std::min<int64_t>(P::depth, rows - row); ++r) {
                    const int64_t place = (row + r) * H + unit;
                    const Real *here = saved_rows + (row + r) * saved_row;
                    V saved[C::saved + 1], *to = both[r], direct = {}, carried = {};
                    for (int n = 0; n < C::saved; ++n) saved[n] = load(here + n * lanes);
                    if (C::has_memory) carried = load(to_memory + place, count);
                    V to_output = load(to_hidden + place, count);
                    if (to_outputs) to_output += load(to_outputs + place, count);
                    C::backward(saved, load(before + place, count), load(outputs + place, count), to_output, carried, direct, to);
                    if (C::has_memory) store(to_memory + place, carried, count);
                    store(to_hidden + place, direct, count);
                    for (int n = 0; n < C::sums; ++n) {
                        bias[n] += to[n];
                        const int64_t number = (n * blocks + block) * lanes;
                        P::store_rounded(to_sums + (number / chunk * height + row + r) * chunk + number % chunk, to[n], lanes);
                    }
                    if (is_narrow())
                        for (int64_t d = 0; d < D; ++d)
                            for (int n = 0; n < C::sums; ++n) {
                                Real *sum = sums + ((1 + d) * C::sums + n) * H + unit;
                                store(sum, load(sum, count) + to[n] * at<Real>(job.x)[(first + row + r) * D + d], count);
                            }
                }
                if constexpr (rounds)
                    for (int n = 0; n < C::sums; ++n)
                        P::store_pairs(to_pairs + ((n * blocks + block) * pairs + row / 2) * chunk, both[0][n], both[1][n]);
            }
            for (int n = 0; n < C::sums; ++n) {
                Real *sum = sums + n * H + unit;
                store(sum, load(sum, count) + bias[n], count);
            }
        }
    }

    void copy_rows(Real *to, const void *from, int64_t begin, int64_t rows) const {
        if (from) std::memcpy(to, at<Real>(from) + begin * H, rows * H * sizeof(Real));
        else std::fill_n(to, rows * H, Real(0));
    }

    // to (rows, width) += to_sums W, in parts of the depth whose weights fit the first cache
    void multiply_back(Real *to, int64_t width, const Element *to_sums, int64_t height, const Element *weight,
                       int64_t rows) const {
        constexpr int64_t at_once = 128 / lanes;
        for (int64_t block = 0; block * lanes < width; block += panel) {
            const int64_t vectors = std::min<int64_t>(panel, ceiling(width, lanes) / lanes - block);
            const Element *columns = weight + block * lanes * G * blocks * lanes;
            const auto run = [&](auto number) {
                constexpr int N = number;
#if HAS_TILES
                if constexpr (rounds)
                    if (tiles) {
                        alignas(64) Real products[TILE * N * lanes];
                        for (int64_t tile = 0; tile < rows; tile += TILE) {
                            multiply_tiles<N>(products, to_sums + tile * chunk, chunk, height * chunk, columns,
                                              G * blocks * lanes / chunk);
                            for (int64_t row = tile; row < std::min(tile + TILE, rows); ++row)
                                for (int n = 0; n < N; ++n) {
                                    Real *place = to + row * width + (block + n) * lanes;
                                    const int64_t count = width - (block + n) * lanes;
                                    store(place, load(place, count) + load(products + ((row - tile) * N + n) * lanes), count);
                                }
                        }
                        return;
                    }
#endif
                const int64_t chunks = G * blocks * lanes / chunk;
                for (int64_t part = 0; part < chunks; part += at_once) {
                    const int64_t end = std::min(part + at_once, chunks);
                    in_blocks(rows, [&](auto size, int64_t row) {
                        constexpr int R = size;
                        V sums[R][N];
                        Real *place = to + row * width + block * lanes;
                        for (int r = 0; r < R; ++r)
                            for (int n = 0; n < N; ++n)
                                sums[r][n] = load(place + r * width + n * lanes, width - (block + n) * lanes);
                        for (int64_t k = part; k < end; ++k)
                            multiply<P>(sums, to_sums + (k * height + row) * chunk, chunk,
                                        columns + k * N * lanes * chunk, lanes);
                        for (int r = 0; r < R; ++r)
                            for (int n = 0; n < N; ++n)
                                store(place + r * width + n * lanes, sums[r][n], width - (block + n) * lanes);
                    });
                }
            };
            with_vectors(vectors, run);
        }
    }

    // Call for the vectors of a panel.
    template <class Function> static void with_vectors(int64_t vectors, Function function) {
        if (vectors == 4) function(std::integral_constant<int, 4>());
        else if (vectors == 3) function(std::integral_constant<int, 3>());
        else if (vectors == 2) function(std::integral_constant<int, 2>());
        else function(std::integral_constant<int, 1>());
    }

    // Lay pairs of rows (rows, width) side by side, in panels of columns as `multiply` and the tiles read them.
    void pack_pairs(Element *to, int64_t pairs, int64_t first, const Real *from, int64_t rows, int64_t width) const {
        for (int64_t block = 0; block * lanes < width; block += panel) {
            const int64_t vectors = std::min<int64_t>(panel, ceiling(width, lanes) / lanes - block);
            for (int64_t row = 0; row < rows; row += 2)
                for (int64_t n = 0; n < vectors; ++n) {
                    const Real *even = from + row * width + (block + n) * lanes;
                    const int64_t count = width - (block + n) * lanes;
                    P::store_pairs(to + (block * pairs + (first + row / 2) * vectors + n) * chunk, load(even, count),
                                   row + 1 < rows ? load(even + width, count) : V{});
                }
        }
    }

    // to (H, width) += of one gate, Σ over pairs of rows of the gradient of its sum times a row of (rows, width) factors
    void add_pairs(Real *to, Element *to_pairs, int64_t pairs, int64_t used, Element *factors, int64_t width,
                   Element *transposed) const {
        const int64_t parts = ceiling(used, TILE) / TILE;
        for (int64_t unit = 0; unit < H; unit += lanes) {
            Element *gradients = to_pairs + unit / lanes * pairs * chunk;
            std::fill_n(gradients + used * chunk, (parts * TILE - used) * chunk, Element(0));
            for (int64_t part = 0; part < parts; ++part)
                transpose_pairs(transposed + part * TILE * chunk, gradients + part * TILE * chunk);
            for (int64_t block = 0; block * lanes < width; block += panel) {
                const int64_t vectors = std::min<int64_t>(panel, ceiling(width, lanes) / lanes - block);
                const auto run = [&](auto number) {
                    constexpr int N = number;
                    Element *columns = factors + block * pairs * chunk;
                    // 0 times what lies there might be NaN
                    if (unit == 0)
                        std::fill_n(columns + used * N * chunk, (parts * TILE - used) * N * chunk, Element(0));
                    alignas(64) Real products[TILE * N * lanes];
#if HAS_TILES
                    if (tiles) multiply_tiles<N>(products, transposed, chunk, TILE * chunk, columns, parts);
#endif
                    for (int64_t row = 0; row < TILE && !tiles; row += 4) {
                        V sums[4][N] = {};
                        for (int64_t part = 0; part < parts; ++part)
                            multiply<P>(sums, transposed + (part * TILE + row) * chunk, chunk,
                                        columns + part * TILE * N * chunk, TILE);
                        std::memcpy(products + row * N * lanes, sums, sizeof(sums));
                    }
                    for (int64_t row = 0; row < std::min(TILE, H - unit); ++row)
                        for (int n = 0; n < N; ++n) {
                            Real *place = to + (unit + row) * width + (block + n) * lanes;
                            const int64_t count = width - (block + n) * lanes;
                            store(place, load(place, count) + load(products + (row * N + n) * lanes), count);
                        }
                };
                with_vectors(vectors, run);
            }
        }
    }

    // to (H, width) += of one gate, Σ over slots and rows of the gradient of its sum times a row of (rows, width) factors
    template <class Factors>
    void add_products(Real *to, const Real *to_sums, int64_t height, int64_t slots, int64_t rows, int64_t width,
                      Factors factors) const {
        constexpr int M = lanes < 4 ? lanes : 4;
        const auto run = [&](auto number, int64_t column) {
            constexpr int N = number;
            for (int64_t unit = 0; unit < H; unit += M) {
                const Real *gradients = to_sums + unit / lanes * height * lanes + unit % lanes;
                V sums[M][N] = {};
                for (int64_t slot = 0; slot < slots; ++slot) {
                    const Real *factor = factors(slot) + column, *gradient = gradients + slot * rows * lanes;
                    for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 8
                        for (int n = 0; n < N; ++n) {
                            const V vector = load(factor + row * width + n * lanes, N == 1 ? width - column : lanes);
#pragma GCC unroll 8
                            for (int m = 0; m < M; ++m) sums[m][n] += gradient[row * lanes + m] * vector;
                        }
                    }
                }
                for (int m = 0; m < M && unit + m < H; ++m)
                    for (int n = 0; n < N; ++n) {
                        Real *place = to + (unit + m) * width + column + n * lanes;
                        const int64_t count = N == 1 ? width - column : lanes;
                        store(place, load(place, count) + sums[m][n], count);
                    }
            }
        };
        int64_t column = 0;
        for (; column + 4 * lanes <= width; column += 4 * lanes) run(std::integral_constant<int, 4>(), column);
        for (; column < width; column += lanes) run(std::integral_constant<int, 1>(), column);
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
