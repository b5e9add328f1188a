// The recurrences of FPTT on a processor: all parameters of a group in one pass before the optimizer's step and one after.
//
// Every number is rounded as the kernels of torch round it, which run one after another where this file cannot be
// compiled: what they take as one instruction, a + weight * b in `add` and in `lerp`, is std::fma here, and nothing else.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("tree-loop-vectorize")  // which Inductor's flags turn off
#endif
#include <cmath>
#include <cstdint>

// inlined, GCC forgets that its arguments do not overlap, and makes no vectors of them
#define KERNEL __attribute__((noinline))

namespace {

// as in torch, whose kernels have several threads for more numbers than that
constexpr int64_t GRAIN = 32768;

// One list of the tensors of a group after the other: their sizes, and where W, its average and its dual lie; the ∇R of
// all are one tensor.
struct Table {
    const uint64_t *entries;
    void *penalties;
    int64_t count, threads;

    // Calls work(size, W, average, dual, ∇R) for the numbers of each tensor, in parts where there are several threads.
    template <class Real, class Work> void each(Work work) const {
        Real *penalty = static_cast<Real *>(penalties);
        for (int64_t number = 0; number < count; penalty += entries[number], ++number) {
            const int64_t size = entries[number], stride = threads > 1 && size > GRAIN ? GRAIN : size;
            const auto part = [=, this](int64_t begin) {
                const auto lies = [=, this](int64_t list) {
                    return reinterpret_cast<Real *>(entries[list * count + number]) + begin;
                };
                work(size - begin < stride ? size - begin : stride, lies(1), lies(2), lies(3), penalty + begin);
            };
            if (stride == size) {
                part(0);
                continue;
            }
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t begin = 0; begin < size; begin += stride) part(begin);
        }
    }
};

template <class Real> KERNEL void penalize(int64_t size, const Real *__restrict param, const Real *__restrict average,
    const Real *__restrict dual, Real *__restrict penalty, Real pull, Real of_dual) {
    for (int64_t i = 0; i < size; ++i) penalty[i] = std::fma(of_dual, dual[i], (param[i] - average[i]) * pull);
}

template <bool IS_DECOUPLED, class Real> KERNEL void advance(int64_t size, Real *__restrict param,
    Real *__restrict average, Real *__restrict dual, const Real *__restrict penalty, Real to_dual, Real beta,
    Real of_dual) {
    // lerp begins at the nearer end
    const bool is_near_average = beta < Real(0.5);
    const Real weight = is_near_average ? beta : beta - Real(1);
    for (int64_t i = 0; i < size; ++i) {
        const Real after = IS_DECOUPLED ? param[i] - penalty[i] : param[i], offset = after - average[i];
        const Real next = std::fma(to_dual, offset, dual[i]);
        const Real between = std::fma(weight, offset, is_near_average ? average[i] : after);
        if (IS_DECOUPLED) param[i] = after;
        dual[i] = next;
        average[i] = std::fma(of_dual, next, between);
    }
}

template <class Real> void penalize_all(const Table &table, Real pull, Real of_dual) {
    table.each<Real>([=](int64_t size, Real *param, Real *average, Real *dual, Real *penalty) {
        penalize(size, param, average, dual, penalty, pull, of_dual);
    });
}

template <class Real>
void advance_all(const Table &table, bool is_decoupled, Real to_dual, Real beta, Real of_dual) {
    const auto kernel = is_decoupled ? advance<true, Real> : advance<false, Real>;
    table.each<Real>([=](int64_t size, Real *param, Real *average, Real *dual, Real *penalty) {
        kernel(size, param, average, dual, penalty, to_dual, beta, of_dual);
    });
}

}  // namespace

// ∇R = pull (W − W̄) + of_dual λ
extern "C" void fptt_penalize(
    const uint64_t *entries, void *penalties, int64_t count, int64_t threads, int64_t is_double, double pull, double of_dual) {
    const Table table = {entries, penalties, count, threads};
    if (is_double) penalize_all<double>(table, pull, of_dual);
    else penalize_all<float>(table, pull, of_dual);
}

// W⁺ ← W⁺ − ∇R if decoupled;  λ⁺ = λ + to_dual (W⁺ − W̄);  W̄⁺ = (1 − beta) W̄ + beta W⁺ + of_dual λ⁺
extern "C" void fptt_advance(const uint64_t *entries, void *penalties, int64_t count, int64_t threads, int64_t is_double,
    int64_t is_decoupled, double to_dual, double beta, double of_dual) {
    const Table table = {entries, penalties, count, threads};
    if (is_double) advance_all<double>(table, is_decoupled, to_dual, beta, of_dual);
    else advance_all<float>(table, is_decoupled, to_dual, beta, of_dual);
}
