// Compiled inner loops of probgen, behind plain buffers: float64 tables, int64 lengths. No state; the lock is released.
//
// On x86 with GCC each loop is built for AVX-512 (8 lanes), AVX2 (4) and the baseline (2), chosen when the module is loaded;
// the environment variable PROBGEN_ISA (avx512, avx2, generic) asks for a lower one. Other compilers build plain loops.
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "buffers.hpp"
#include "isa.hpp"
#ifdef PROBGEN_X86
#include <immintrin.h>
#endif

namespace {

// Tables of a set of sequences; rows are steps. Null where not given or not wanted.
struct Problem {
    size_t S, D, block;
    const double *first, *moves, *moves_back;
    size_t first_stride;                               // 0 where all sequences share the first row
    const double *potentials;                          // (total, S); or normals with independent cells:
    const double *x, *loc, *inverse, *constant;        // (total, D), (S, D) x 3, inverse = 1 / (scale sqrt 2)
    const double *sequence_weight;                     // (n,)
    bool gaps;                                         // whether x has any
    bool careful;                                      // whether a share lost to underflow could ever matter
    double *sums, *tops, *states, *marginals, *initial;
    long long *path;
};

// A stretch [begin, end) of a sequence whose rows are [start, stop). It is run from `warm` steps before, and back from `right`
// steps after, from an even guess (0: from the sequence's own ends); entering and leaving, S numbers each, are what it came in
// with and what it leaves to its neighbour.
struct Job {
    size_t sequence;
    long long start, stop, begin, end, warm, right;
    double *entering, *leaving, *entering_back, *leaving_back, *nats;
    long long *impossible;
    unsigned char *flag;
};

// Scratch of one task, and its sums over lanes: expected moves (S, S) and moments (D, S, 3), in vectors.
struct Room {
    double *tiles, *counts, *moments;
};

struct Cells {
    size_t K, D, padded;
    const double *x, *loc, *inverse, *constant, *weights;
    double *out;
};

#ifdef PROBGEN_X86
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma,bmi2")
namespace avx512 {
typedef double V __attribute__((vector_size(64), may_alias));
typedef long long I __attribute__((vector_size(64), may_alias));
typedef unsigned long long U __attribute__((vector_size(64), may_alias));
constexpr int LANES = 8;
static inline V larger(V a, V b) { return (V)_mm512_max_pd((__m512d)a, (__m512d)b); }
#define PROBGEN_SCALES 1
static inline V rounded(V y) { return (V)_mm512_roundscale_pd((__m512d)y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V scaled(V p, V k) { return (V)_mm512_scalef_pd((__m512d)p, (__m512d)k); }
static inline bool any(I mask) { return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0; }
static inline V pick(const double *b, const size_t *at) {
    return V{b[at[0]], b[at[1]], b[at[2]], b[at[3]], b[at[4]], b[at[5]], b[at[6]], b[at[7]]};
}
#include "lanes.hpp"
}  // namespace avx512
#undef PROBGEN_SCALES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
namespace avx2 {
typedef double V __attribute__((vector_size(32), may_alias));
typedef long long I __attribute__((vector_size(32), may_alias));
typedef unsigned long long U __attribute__((vector_size(32), may_alias));
constexpr int LANES = 4;
static inline V larger(V a, V b) { return (V)_mm256_max_pd((__m256d)a, (__m256d)b); }
static inline bool any(I mask) { return _mm256_movemask_pd((__m256d)mask) != 0; }
static inline V pick(const double *b, const size_t *at) { return V{b[at[0]], b[at[1]], b[at[2]], b[at[3]]}; }
#include "lanes.hpp"
}  // namespace avx2
#pragma GCC pop_options
#endif

namespace generic {
#if defined(__GNUC__)
typedef double V __attribute__((vector_size(16), may_alias));
typedef long long I __attribute__((vector_size(16), may_alias));
typedef unsigned long long U __attribute__((vector_size(16), may_alias));
constexpr int LANES = 2;
static inline bool any(I mask) { return mask[0] || mask[1]; }
static inline V pick(const double *b, const size_t *at) { return V{b[at[0]], b[at[1]]}; }
#else
typedef double V;
typedef long long I;
typedef unsigned long long U;
constexpr int LANES = 1;
static inline bool any(I mask) { return mask != 0; }
static inline V pick(const double *b, const size_t *at) { return b[at[0]]; }
#endif
static inline V larger(V a, V b) { return a > b ? a : b; }
#include "lanes.hpp"
}  // namespace generic

typedef void (*Sweep)(const Problem &, const Job *, int, Room &);

struct Build {
    const char *name;
    int lanes;
    Sweep forward, smooth, best;
    void (*normal_log_prob)(const Cells &, size_t, size_t);
    void (*normal_moments)(const Cells &, size_t, size_t, double *);
};

#define PROBGEN_BUILD(space) \
    {#space, space::LANES, space::forward, space::smooth, space::best, space::normal_log_prob, space::normal_moments}

Build chosen() {
#ifdef PROBGEN_X86
    const Isa isa = widest();
    if (isa == Isa::Avx512) return PROBGEN_BUILD(avx512);
    if (isa == Isa::Avx2) return PROBGEN_BUILD(avx2);
#endif
    return PROBGEN_BUILD(generic);
}

const Build build = chosen();

constexpr long long LONG = 4096;  // steps beyond which a sequence is cut into windows
constexpr double APART = 1e-13;  // relative: neighbours that agree so well have forgotten the guess

enum class Way { Forward, Smooth, Best };

double *aligned(std::vector<double> &space, size_t size) {
    space.resize(size + 8);
    return reinterpret_cast<double *>((reinterpret_cast<std::uintptr_t>(space.data()) + 63) & ~std::uintptr_t(63));
}

// The jobs of some sequences, and room for what they write.
struct Plan {
    std::vector<Job> jobs;
    std::vector<double> ends, nats, counts, moments;
    std::vector<long long> impossible;
    std::vector<unsigned char> flags;
    bool cut = false;

    void add(size_t sequence, long long start, long long stop, long long begin, long long end, long long warm) {
        cut = cut || begin > start || end < stop;
        jobs.push_back({sequence, start, stop, begin, end, std::min(warm, begin - start), std::min(warm, stop - end),
                        nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr});
    }

    void run(const Problem &p, Way way, Sweep sweep, int threads) {
        const size_t n = jobs.size(), S = p.S, L = size_t(build.lanes);
        ends.assign(cut ? 4 * n * S : 0, 0.0);
        nats.assign(n, 0.0), impossible.assign(n, 0), flags.assign(n, 0);
        for (size_t i = 0; i < n; ++i) {
            Job &job = jobs[i];
            job.nats = &nats[i], job.impossible = &impossible[i], job.flag = &flags[i];
            if (!cut) continue;
            double *end = &ends[4 * i * S];
            job.entering = end, job.leaving = end + S, job.entering_back = end + 2 * S, job.leaving_back = end + 3 * S;
        }
        std::vector<Job> sorted = jobs;
        std::stable_sort(sorted.begin(), sorted.end(), [](const Job &a, const Job &b) {
            return a.end - a.begin + a.warm > b.end - b.begin + b.warm;
        });
        const size_t groups = (n + L - 1) / L;
        auto one = [&](size_t g, Room &room) { sweep(p, &sorted[g * L], int(std::min(L, n - g * L)), room); };
        std::vector<std::vector<double>> tiles(threads < 1 ? 1 : threads);
        if (way != Way::Smooth) {
            long long steps = 0;
            for (const Job &job : sorted) steps = std::max(steps, job.end + job.right - job.begin + job.warm);
            if (way != Way::Best) steps = 0;
            spread(groups, threads, [&](size_t g, size_t worker) {
                Room room{aligned(tiles[worker], size_t(steps) * S * L), nullptr, nullptr};
                one(g, room);
            });
            return;
        }
        // sums are added up task by task, so that the bits don't depend on the threads
        const size_t tasks = std::min<size_t>(groups, 8), squares = S * S * L, cells = p.x ? 3 * p.D * S * L : 0;
        const size_t longest = std::min<size_t>(p.block, size_t(sorted[0].end - sorted[0].begin + sorted[0].warm));
        std::vector<std::vector<double>> sums(tasks);
        spread(tasks, threads, [&](size_t task, size_t worker) {
            double *own = aligned(sums[task], squares + cells);
            Room room{aligned(tiles[worker], (longest + 1) * (cells ? 3 * S + p.D : 2 * S) * L), own, cells ? own + squares : nullptr};
            for (size_t g = task * groups / tasks; g < (task + 1) * groups / tasks; ++g) one(g, room);
        });
        counts.assign(S * S, 0.0), moments.assign(cells / L, 0.0);
        for (auto &each : sums) {
            double *own = aligned(each, squares + cells);
            for (size_t i = 0; i < S * S; ++i)
                for (size_t l = 0; l < L; ++l) counts[i] += own[i * L + l];
            for (size_t i = 0; i < cells / L; ++i)
                for (size_t l = 0; l < L; ++l) moments[i] += own[squares + i * L + l];
        }
    }
};

// One long sequence cut into windows; how many depends on nothing but its length and S, so that the bits don't either.
void cut(Plan &plan, const Problem &p, Way way, size_t sequence, long long start, long long stop, long long warm) {
    const long long even = (stop - start + 15) / 16;
    const long long own = way == Way::Forward ? even : std::max((long long)p.block - warm, 4 * warm);
    for (long long begin = start; begin < stop; begin += own)
        plan.add(sequence, start, stop, begin, std::min(begin + own, stop), warm);
}

// Whether what two neighbours say of the same point agrees in every state.
bool agree(const double *guessed, const double *known, size_t S) {
    double a = 0, b = 0;
    for (size_t s = 0; s < S; ++s) { a += guessed[s]; b += known[s]; }
    if (!(a > 0) || !(b > 0)) return false;
    for (size_t s = 0; s < S; ++s)
        if (!(std::fabs(guessed[s] / a - known[s] / b) <= APART * known[s] / b)) return false;
    return true;
}

bool agree_best(const double *guessed, const double *known, size_t S) {
    double a = -INFINITY, b = -INFINITY;
    for (size_t s = 0; s < S; ++s) { a = std::max(a, guessed[s]); b = std::max(b, known[s]); }
    for (size_t s = 0; s < S; ++s)
        if (guessed[s] - a != known[s] - b && !(std::fabs((guessed[s] - a) - (known[s] - b)) <= 1e-9)) return false;
    return b > -INFINITY;
}

bool windows_agree(const Problem &p, const Plan &plan, Way way) {
    const size_t S = p.S;
    std::vector<double> known(S);
    for (size_t i = 0; i + 1 < plan.jobs.size(); ++i) {
        const Job &left = plan.jobs[i], &right = plan.jobs[i + 1];
        if (way == Way::Smooth && !agree(left.entering_back, right.leaving_back, S)) return false;
        if (way == Way::Best && size_t(left.leaving_back[0]) != size_t(p.path[right.begin])) return false;
        const double *state = left.leaving;
        std::fill(known.begin(), known.end(), way == Way::Best ? -INFINITY : 0.0);
        for (size_t from = 0; from < S; ++from)
            for (size_t to = 0; to < S; ++to) {
                double m = p.moves[from * S + to];
                if (way == Way::Best) known[to] = std::max(known[to], state[from] + m);
                else known[to] += state[from] * m;
            }
        if (!(way == Way::Best ? agree_best : agree)(right.entering, known.data(), S)) return false;
    }
    return true;
}

struct Results {  // null where not wanted; nats, impossible and flags are (n,), the others summed
    double *nats;
    long long *impossible, *flags;
    std::vector<double> counts, moments;
    void take(const Plan &plan) {
        for (size_t i = 0; i < plan.jobs.size(); ++i) {
            size_t row = plan.jobs[i].sequence;
            if (!nats) break;
            nats[row] += plan.nats[i];
            if (plan.impossible[i] && (!impossible[row] || plan.impossible[i] < impossible[row]))
                impossible[row] = plan.impossible[i];
            flags[row] |= plan.flags[i];
        }
        counts.resize(plan.counts.size()), moments.resize(plan.moments.size());
        for (size_t i = 0; i < plan.counts.size(); ++i) counts[i] += plan.counts[i];
        for (size_t i = 0; i < plan.moments.size(); ++i) moments[i] += plan.moments[i];
    }
};

// How early windows must begin: the least power of two at which beginning twice as early makes no difference, tried at
// sixteen points; 0 where none is found. The sweep itself is checked all the same.
long long forgetting(Problem p, Way way, size_t sequence, long long start, long long stop) {
    const Sweep sweep = way == Way::Best ? build.best : build.forward;
    p.sums = p.tops = p.states = p.marginals = nullptr;
    p.path = nullptr;
    for (long long warm = 32; warm * 32 <= stop - start; warm *= 2) {
        Plan plan;
        for (long long k = 1; k <= 16; ++k)
            for (long long early : {warm, 2 * warm}) {
                const long long begin = start + k * (stop - start) / 17;
                plan.add(sequence, start, stop, begin, begin + 1, early);
            }
        plan.run(p, way == Way::Best ? Way::Best : Way::Forward, sweep, 1);
        bool same = true;
        for (size_t i = 0; same && i < plan.jobs.size(); i += 2) {
            const double *late = plan.jobs[i].entering, *early = plan.jobs[i + 1].entering;
            same = way == Way::Best ? agree_best(late, early, p.S) : agree(late, early, p.S);
        }
        if (same) return warm;
    }
    return 0;
}

// All sequences: short ones side by side, long ones in windows where their guesses are soon forgotten, else whole.
void sweep_all(const Problem &p, Way way, Sweep sweep, const long long *lengths, size_t n, int threads, Results &results) {
    Plan together;
    long long start = 0;
    for (size_t i = 0; i < n; ++i, start += lengths[i - 1]) {
        const long long stop = start + lengths[i];
        bool done = false, possible = true;
        long long warm = lengths[i] > LONG && !p.careful ? forgetting(p, way, i, start, stop) : 0;
        if (way == Way::Best) warm *= 4;  // the way back merges later than the values settle
        for (; warm && possible && !done && warm * 8 <= lengths[i]; warm *= 4) {
            Plan plan;
            cut(plan, p, way, i, start, stop, warm);
            plan.run(p, way, sweep, threads);
            for (long long each : plan.impossible) possible = possible && !each;
            done = possible && windows_agree(p, plan, way);
            if (done) results.take(plan);
        }
        if (!done) together.add(i, start, stop, start, stop, 0);
    }
    if (together.jobs.empty()) return;
    together.run(p, way, sweep, threads);
    results.take(together);
}

// Buffers

bool check_lengths(const Buffer &lengths, Py_ssize_t total) {
    long long sum = 0;
    for (Py_ssize_t i = 0; i < lengths.view.shape[0]; ++i) {
        long long each = lengths.whole()[i];
        if (each < 1 || each > total - sum) { sum = -1; break; }
        sum += each;
    }
    if (lengths.view.shape[0] > 0 && sum == total) return true;
    PyErr_SetString(PyExc_ValueError, "lengths: positive numbers that add up to the rows are wanted");
    return false;
}

struct Shared {  // what every sweep reads
    Buffer first, moves, potentials, lengths, x, loc, scale;
    std::vector<double> tables;
    Py_ssize_t S = 0, total = 0, n = 0;
    Problem p{};

    // Potentials (total, S), or a tuple (x, loc, scale) of normals with independent cells.
    bool source(PyObject *e) {
        if (!PyTuple_Check(e)) {
            if (!take(e, "potentials", 'd', {-1, -1}, false, potentials)) return false;
            total = potentials.view.shape[0], S = potentials.view.shape[1];
            p.potentials = potentials.numbers();
            return true;
        }
        PyObject *px, *ploc, *pscale;
        if (!PyArg_ParseTuple(e, "OOO", &px, &ploc, &pscale) || !take(px, "x", 'd', {-1, -1}, false, x)) return false;
        total = x.view.shape[0];
        Py_ssize_t D = x.view.shape[1];
        if (!take(ploc, "loc", 'd', {-1, D}, false, loc)) return false;
        S = loc.view.shape[0];
        if (!take(pscale, "scale", 'd', {S, D}, false, scale)) return false;
        const size_t size = size_t(S) * size_t(D);
        tables.resize(2 * size);
        for (size_t i = 0; i < size; ++i) {
            tables[i] = 0.70710678118654752440 / scale.numbers()[i];
            tables[size + i] = -0.91893853320467274178 - std::log(scale.numbers()[i]);
        }
        const double *cells = x.numbers();
        long long gaps = 0;
        for (Py_ssize_t i = 0; i < total * D; ++i) gaps += cells[i] != cells[i];
        p.gaps = gaps > 0;
        p.D = size_t(D), p.x = x.numbers(), p.loc = loc.numbers(), p.inverse = tables.data(), p.constant = tables.data() + size;
        return true;
    }

    bool read(PyObject *f, PyObject *m, PyObject *e, PyObject *l) {
        if (!source(e)) return false;
        if (total < 1 || S < 1) { PyErr_SetString(PyExc_ValueError, "potentials: rows and states are wanted"); return false; }
        if (!take(l, "lengths", 'q', {-1}, false, lengths) || !check_lengths(lengths, total)) return false;
        n = lengths.view.shape[0];
        if (!take(m, "moves", 'd', {S, S}, false, moves) || !take(f, "first", 'd', {-1, S}, false, first)) return false;
        if (first.view.shape[0] != 1 && first.view.shape[0] != n) {
            PyErr_SetString(PyExc_ValueError, "first: one row, or one a sequence, is wanted");
            return false;
        }
        p.S = size_t(S), p.first = first.numbers(), p.moves = moves.numbers();
        p.block = std::min<size_t>(2048, std::max<size_t>(256, 65536 / p.S));
        p.first_stride = first.view.shape[0] == 1 ? 0 : size_t(S);
        return true;
    }
};

std::vector<double> turned(const double *matrix, size_t S) {
    std::vector<double> out(S * S);
    for (size_t i = 0; i < S; ++i)
        for (size_t j = 0; j < S; ++j) out[j * S + i] = matrix[i * S + j];
    return out;
}

void finish(double *nats, const long long *impossible, size_t n) {
    for (size_t i = 0; i < n; ++i)
        if (impossible[i]) nats[i] = -INFINITY;
}

PyObject *forward(PyObject *, PyObject *args) {
    PyObject *f, *m, *e, *l, *o_nats, *o_bad, *o_flags, *o_sums, *o_tops, *o_states;
    int careful, threads;
    if (!PyArg_ParseTuple(args, "OOOOpiOOOOOO", &f, &m, &e, &l, &careful, &threads, &o_nats, &o_bad, &o_flags, &o_sums,
                          &o_tops, &o_states))
        return nullptr;
    Shared in;
    Buffer nats, bad, flags, sums, tops, states;
    if (!in.read(f, m, e, l) || !take(o_nats, "nats", 'd', {in.n}, true, nats) ||
        !take(o_bad, "impossible", 'q', {in.n}, true, bad) || !take(o_flags, "flags", 'q', {in.n}, true, flags) ||
        !maybe(o_sums, "sums", {in.total}, sums, in.p.sums) || !maybe(o_tops, "tops", {in.total}, tops, in.p.tops) ||
        !maybe(o_states, "states", {in.total, in.S}, states, in.p.states))
        return nullptr;
    if (!in.p.sums != !in.p.tops) {
        PyErr_SetString(PyExc_ValueError, "sums and tops: both or none are wanted");
        return nullptr;
    }
    in.p.careful = careful;
    Results results{nats.numbers(), bad.whole(), flags.whole(), {}, {}};
    return unlocked([&] {
        sweep_all(in.p, Way::Forward, build.forward, in.lengths.whole(), size_t(in.n), threads, results);
        finish(nats.numbers(), bad.whole(), size_t(in.n));
    });
}

PyObject *smooth(PyObject *, PyObject *args) {
    PyObject *f, *m, *e, *l, *pweight, *o_nats, *o_bad, *o_flags, *o_initial, *o_counts, *o_marginals, *o_moments;
    int careful, threads;
    if (!PyArg_ParseTuple(args, "OOOOOpiOOOOOOO", &f, &m, &e, &l, &pweight, &careful, &threads, &o_nats, &o_bad, &o_flags,
                          &o_initial, &o_counts, &o_marginals, &o_moments))
        return nullptr;
    Shared in;
    Buffer weight, nats, bad, flags, initial, counts, marginals, moments;
    double *sums = nullptr;
    if (!in.read(f, m, e, l) || !take(o_nats, "nats", 'd', {in.n}, true, nats) ||
        !take(o_bad, "impossible", 'q', {in.n}, true, bad) || !take(o_flags, "flags", 'q', {in.n}, true, flags) ||
        !take(o_initial, "initial", 'd', {in.n, in.S}, true, initial) ||
        !take(o_counts, "counts", 'd', {in.S, in.S}, true, counts) ||
        !maybe(o_marginals, "marginals", {in.total, in.S}, marginals, in.p.marginals) ||
        !maybe(o_moments, "moments", {3, in.S, Py_ssize_t(in.p.D)}, moments, sums))
        return nullptr;
    if (sums && !in.p.x) {
        PyErr_SetString(PyExc_ValueError, "moments: only those of normals can be taken");
        return nullptr;
    }
    if (pweight != Py_None) {
        if (!take(pweight, "weight", 'd', {in.n}, false, weight)) return nullptr;
        in.p.sequence_weight = weight.numbers();
    }
    in.p.careful = careful, in.p.initial = initial.numbers();
    Results results{nats.numbers(), bad.whole(), flags.whole(), {}, {}};
    return unlocked([&] {
        const size_t S = in.p.S, D = in.p.D;
        auto back = turned(in.p.moves, S);
        in.p.moves_back = back.data();
        sweep_all(in.p, Way::Smooth, build.smooth, in.lengths.whole(), size_t(in.n), threads, results);
        finish(nats.numbers(), bad.whole(), size_t(in.n));
        for (size_t i = 0; i < S * S; ++i) counts.numbers()[i] = results.counts[i] * in.p.moves[i];
        for (size_t d = 0; d < D && sums; ++d)
            for (size_t s = 0; s < S; ++s)
                for (size_t k = 0; k < 3; ++k) sums[(k * S + s) * D + d] = results.moments[(d * S + s) * 3 + k];
    });
}

double potential(const Problem &p, size_t row, size_t s) {
    if (p.potentials) return p.potentials[row * p.S + s];
    double total = 0;
    for (size_t d = 0; d < p.D; ++d) {
        double each = p.x[row * p.D + d], z = (each - p.loc[s * p.D + d]) * p.inverse[s * p.D + d];
        if (each == each) total += p.constant[s * p.D + d] - z * z;
    }
    return total;
}

PyObject *best(PyObject *, PyObject *args) {
    PyObject *f, *m, *e, *l, *o_path, *o_nats;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOiOO", &f, &m, &e, &l, &threads, &o_path, &o_nats)) return nullptr;
    Shared in;
    Buffer path, nats;
    if (!in.read(f, m, e, l) || !take(o_path, "path", 'q', {in.total}, true, path) ||
        !take(o_nats, "nats", 'd', {in.n}, true, nats))
        return nullptr;
    in.p.path = path.whole();
    return unlocked([&] {
        const size_t S = in.p.S;
        auto into = turned(in.p.moves, S);
        in.p.moves_back = into.data();
        Results none{nullptr, nullptr, nullptr, {}, {}};
        sweep_all(in.p, Way::Best, build.best, in.lengths.whole(), size_t(in.n), threads, none);
        long long *way = in.p.path, start = 0;
        for (Py_ssize_t i = 0; i < in.n; start += in.lengths.whole()[i++]) {
            const long long stop = start + in.lengths.whole()[i];
            double total = in.p.first[size_t(i) * in.p.first_stride + size_t(way[start])];
            for (long long t = start; t < stop; ++t) {
                total += potential(in.p, size_t(t), size_t(way[t]));
                if (t > start) total += in.p.moves[way[t - 1] * (long long)S + way[t]];
            }
            nats.numbers()[i] = total;
            if (!(total > -INFINITY)) std::fill(way + start, way + stop, 0);
        }
    });
}

// loc and scale (K, D) as padded (D, K) tables.
struct Normal {
    Buffer x, loc, scale;
    std::vector<double> table;
    Cells c{};
    bool read(PyObject *px, PyObject *ploc) {
        if (!take(px, "x", 'd', {-1, -1}, false, x) || !take(ploc, "loc", 'd', {-1, x.view.shape[1]}, false, loc)) return false;
        c.D = size_t(x.view.shape[1]), c.K = size_t(loc.view.shape[0]), c.x = x.numbers();
        if (c.D && c.K) {
            c.padded = (c.K + size_t(build.lanes) - 1) / size_t(build.lanes) * size_t(build.lanes);
            table.assign(3 * c.D * c.padded, 0.0);
            for (size_t k = 0; k < c.K; ++k)
                for (size_t d = 0; d < c.D; ++d) table[d * c.padded + k] = loc.numbers()[k * c.D + d];
            c.loc = table.data();
            return true;
        }
        PyErr_SetString(PyExc_ValueError, "loc: states and cells are wanted");
        return false;
    }
};

constexpr size_t ROWS = 8192;  // of one task

PyObject *normal_log_prob(PyObject *, PyObject *args) {
    PyObject *px, *ploc, *pscale, *pout;
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOi", &px, &ploc, &pscale, &pout, &threads)) return nullptr;
    Normal in;
    Buffer scale, out;
    if (!in.read(px, ploc) || !take(pscale, "scale", 'd', {(Py_ssize_t)in.c.K, (Py_ssize_t)in.c.D}, false, scale) ||
        !take(pout, "out", 'd', {in.x.view.shape[0], (Py_ssize_t)in.c.K}, true, out))
        return nullptr;
    Cells &c = in.c;
    double *inverse = in.table.data() + c.D * c.padded, *constant = inverse + c.D * c.padded;
    for (size_t k = 0; k < c.K; ++k)
        for (size_t d = 0; d < c.D; ++d) {
            inverse[d * c.padded + k] = 1.0 / scale.numbers()[k * c.D + d];
            constant[d * c.padded + k] = -0.91893853320467274178 - std::log(scale.numbers()[k * c.D + d]);
        }
    c.inverse = inverse, c.constant = constant, c.out = out.numbers();
    const size_t n = size_t(in.x.view.shape[0]);
    return unlocked([&] {
        spread((n + ROWS - 1) / ROWS, threads,
               [&](size_t i, size_t) { build.normal_log_prob(c, i * ROWS, std::min(n, (i + 1) * ROWS)); });
    });
}

PyObject *normal_moments(PyObject *, PyObject *args) {
    PyObject *px, *pweights, *ploc, *outs[3];
    int threads;
    if (!PyArg_ParseTuple(args, "OOOOOOi", &px, &pweights, &ploc, &outs[0], &outs[1], &outs[2], &threads)) return nullptr;
    Normal in;
    Buffer weights, out[3];
    const Cells &c = in.c;
    if (!in.read(px, ploc) || !take(pweights, "weights", 'd', {in.x.view.shape[0], (Py_ssize_t)c.K}, false, weights))
        return nullptr;
    for (int i = 0; i < 3; ++i)
        if (!take(outs[i], "out", 'd', {(Py_ssize_t)c.K, (Py_ssize_t)c.D}, true, out[i])) return nullptr;
    in.c.weights = weights.numbers();
    const size_t n = size_t(in.x.view.shape[0]), size = c.D * c.padded, tasks = (n + ROWS - 1) / ROWS;
    return unlocked([&] {
        std::vector<std::vector<double>> sums(tasks);
        spread(tasks, threads, [&](size_t i, size_t) {
            sums[i].assign(3 * size, 0.0);
            build.normal_moments(c, i * ROWS, std::min(n, (i + 1) * ROWS), sums[i].data());
        });
        for (size_t part = 0; part < 3; ++part)
            for (size_t k = 0; k < c.K; ++k)
                for (size_t d = 0; d < c.D; ++d) {
                    double total = 0;
                    for (size_t i = 0; i < tasks; ++i) total += sums[i][part * size + d * c.padded + k];
                    out[part].numbers()[k * c.D + d] = total;
                }
    });
}

PyObject *isa(PyObject *, PyObject *) { return PyUnicode_FromString(build.name); }

PyMethodDef methods[] = {
    {"forward", forward, METH_VARARGS,
     "forward(first, moves, potentials, lengths, careful, threads, nats, impossible, flags, sums, tops, states)\n\n"
     "Filtered probabilities. first (1 or n, S) and moves (S, S) are probabilities, potentials (total, S) logarithms, or a\n"
     "tuple (x (total, D), loc (S, D), scale (S, D)) of normals with independent cells, NaN where missing. Writes\n"
     "nats (n,), impossible (n,) = 1 + first impossible row or 0, flags (n,) = 1 where a share underflowed, and unless None\n"
     "sums and tops (total,), log p(x_t | x_<t) = log(sums) + tops, and states (total, S)."},
    {"smooth", smooth, METH_VARARGS,
     "smooth(first, moves, potentials, lengths, weight, careful, threads, nats, impossible, flags, initial, counts, marginals,\n"
     "       moments)\n\n"
     "Both directions. weight (n,) multiplies a sequence's share, or None. Writes nats, impossible and flags as forward does,\n"
     "p(z_1 | x) into initial (n, S), expected moves into counts (S, S), and unless None p(z_t | x) into marginals (total, S)\n"
     "and, of normals, weighted counts and moments about loc of the cells seen into moments (3, S, D)."},
    {"best", best, METH_VARARGS,
     "best(first, moves, potentials, lengths, threads, path, nats)\n\n"
     "Viterbi in logarithms. Writes path (total,) int64 and nats (n,)."},
    {"normal_log_prob", normal_log_prob, METH_VARARGS,
     "normal_log_prob(x, loc, scale, out, threads)\n\nlog N(x_n; loc_k, diag scale_k^2) into out (n, K); NaN cells count 0."},
    {"normal_moments", normal_moments, METH_VARARGS,
     "normal_moments(x, weights, loc, n, first, second, threads)\n\n"
     "Weighted counts and moments about loc of the cells seen, each (K, D)."},
    {"isa", isa, METH_NOARGS, "isa()\n\nThe instruction set in use: avx512, avx2 or generic."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "Compiled inner loops.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
