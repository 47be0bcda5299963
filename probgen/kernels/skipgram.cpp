// Skip-gram with negative sampling (Mikolov et al. 2013), one pair after the other, behind plain buffers. No state; the lock is
// released. Tables are float32 (V, stride), rows padded with zeros to a multiple of 16 numbers.
//
// The gradient of a pair is taken whole before anything moves: a word drawn twice counts twice, and a negative may be the
// context itself, so that the optimum is the shifted mutual information (Levy and Goldberg 2014).
#define Py_LIMITED_API 0x030B0000
#include "buffers.hpp"

#include <cmath>
#include <cstdint>

// The loop is built twice, for AVX2 with fused products and the baseline, and chosen when the module is loaded.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define PROBGEN_CLONES __attribute__((target_clones("arch=haswell", "default")))
#define PROBGEN_INLINE inline __attribute__((always_inline))
#else
#define PROBGEN_CLONES
#define PROBGEN_INLINE inline
#endif

namespace {

constexpr size_t LANES = 16, MOST = 256;

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
PROBGEN_INLINE float sum(const Lanes &x) {
    float total = 0;
    for (size_t i = 0; i < LANES; ++i) total += x[i];
    return total;
}
#else
struct Lanes {
    float x[LANES]{};
    Lanes operator*(const Lanes &y) const { Lanes z; for (size_t i = 0; i < LANES; ++i) z.x[i] = x[i] * y.x[i]; return z; }
    Lanes operator*(float y) const { Lanes z; for (size_t i = 0; i < LANES; ++i) z.x[i] = x[i] * y; return z; }
    Lanes &operator+=(const Lanes &y) { for (size_t i = 0; i < LANES; ++i) x[i] += y.x[i]; return *this; }
};
inline Lanes operator*(float y, const Lanes &x) { return x * y; }
inline float sum(const Lanes &x) { float s = 0; for (float v : x.x) s += v; return s; }
#endif

// The logistic function and its logarithm by straight lines between nodes 1/128 apart: within 1e-6 on [-16, 16].
struct Logistic {
    static constexpr int NODES = 4096;
    struct Node { float value, slope, log, log_slope; };
    std::vector<Node> nodes{size_t(NODES)};
    Logistic() {
        auto at = [](int i) { return (i - NODES / 2) / 128.0; };
        auto log_of = [](double x) { return x < 0 ? x - std::log1p(std::exp(x)) : -std::log1p(std::exp(-x)); };
        for (int i = 0; i < NODES; ++i) {
            const double a = log_of(at(i)), b = log_of(at(i + 1));
            nodes[size_t(i)] = {float(std::exp(a)), float(std::exp(b) - std::exp(a)), float(a), float(b - a)};
        }
    }
    // sigma(x), and log sigma(x) is added to `total`.
    PROBGEN_INLINE float operator()(float x, double &total) const {
        const float place = std::min(NODES - 0.001f, std::max(0.0f, x * 128.0f + NODES / 2));  // in this order NaN becomes 0
        const int i = int(place);
        const float part = place - float(i);
        const Node &node = nodes[size_t(i)];
        total += node.log + part * node.log_slope;
        return node.value + part * node.slope;
    }
};

struct Random {  // xorshift64*
    std::uint64_t state;
    explicit Random(std::uint64_t seed) : state((seed + 1) * 0x9E3779B97F4A7C15ull | 1) { for (int i = 0; i < 8; ++i) (*this)(); }
    PROBGEN_INLINE std::uint64_t operator()() {
        state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
        return state * 0x2545F4914F6CDD1Dull;
    }
    PROBGEN_INLINE double uniform() { return double((*this)() >> 11) * 0x1p-53; }
};

struct Tables {
    float *rows, *outs;
    size_t words, stride;
};

// One step of a pair: `targets` are the context, then the negatives. Its log-likelihood is added to `total`.
PROBGEN_INLINE void step(const Tables &t, size_t centre, const std::uint32_t *targets, size_t n, float rate, const Logistic &logistic, double &total) {
    float *x = t.rows + centre * t.stride, force[MOST];
    for (size_t j = 0; j < n; ++j) {
        const float *y = t.outs + targets[j] * t.stride;
        Lanes dot{};
        for (size_t d = 0; d < t.stride; d += LANES)
            dot += *reinterpret_cast<const Lanes *>(x + d) * *reinterpret_cast<const Lanes *>(y + d);
        const float s = sum(dot);
        force[j] = j ? -rate * (1 - logistic(-s, total)) : rate * (1 - logistic(s, total));
    }
    for (size_t d = 0; d < t.stride; d += LANES) {
        const Lanes old = *reinterpret_cast<const Lanes *>(x + d);
        Lanes moved = old;
        for (size_t j = 0; j < n; ++j) moved += force[j] * *reinterpret_cast<const Lanes *>(t.outs + targets[j] * t.stride + d);
        for (size_t j = 0; j < n; ++j) *reinterpret_cast<Lanes *>(t.outs + targets[j] * t.stride + d) += force[j] * old;
        *reinterpret_cast<Lanes *>(x + d) = moved;
    }
}

PROBGEN_CLONES void step_each(const Tables &t, const long long *centres, const std::uint32_t *targets, size_t n, size_t width, float rate, double &total) {
    const Logistic logistic;
    for (size_t i = 0; i < n; ++i) step(t, size_t(centres[i]), targets + i * width, width, rate, logistic, total);
}

struct Noise {  // Walker's alias table
    struct Slot { std::uint32_t share, other; };
    std::vector<Slot> slots;
    PROBGEN_INLINE std::uint32_t operator()(Random &random) const {
        const std::uint64_t r = random();
        const std::uint32_t i = std::uint32_t(((r >> 32) * slots.size()) >> 32);
        return std::uint32_t(r) <= slots[i].share ? i : slots[i].other;
    }
};

struct Run {
    const long long *ids, *lengths;
    size_t sequences;
    const double *keep;
    Noise noise;
    size_t window, negatives;
    double first, last;  // rates
    std::uint64_t seed;
};

PROBGEN_CLONES void train_on(const Tables &t, const Run &run, double &total, long long &pairs) {
    const Logistic logistic;
    Random random(run.seed);
    std::vector<std::uint32_t> kept;
    std::uint32_t targets[MOST];
    size_t all = 0, done = 0;
    for (size_t s = 0; s < run.sequences; ++s) all += size_t(run.lengths[s]);
    for (size_t s = 0; s < run.sequences; ++s) {
        const size_t length = size_t(run.lengths[s]);
        kept.clear();
        for (size_t i = done; i < done + length; ++i) {
            const size_t word = size_t(run.ids[i]);
            if (run.keep[word] >= 1 || random.uniform() < run.keep[word]) kept.push_back(std::uint32_t(word));
        }
        for (size_t i = 0; i < kept.size(); ++i) {
            const double share = (double(done) + double(length) * double(i) / double(kept.size())) / double(all);
            const float rate = float(run.first + (run.last - run.first) * share);
            const size_t reach = 1 + size_t(((random() >> 32) * run.window) >> 32);
            const size_t low = i > reach ? i - reach : 0, high = std::min(kept.size(), i + reach + 1);
            for (size_t j = low; j < high; ++j) {
                if (j == i) continue;
                targets[0] = kept[j];
                for (size_t k = 1; k <= run.negatives; ++k) targets[k] = run.noise(random);
#if defined(__GNUC__)
                for (size_t k = 0; k <= run.negatives; ++k)
                    for (size_t d = 0; d < t.stride; d += LANES) __builtin_prefetch(t.outs + targets[k] * t.stride + d, 1);
#endif
                step(t, kept[i], targets, run.negatives + 1, rate, logistic, total);
                ++pairs;
            }
        }
        done += length;
    }
}

bool take_table(PyObject *object, const char *name, Buffer &out) {
    if (PyObject_GetBuffer(object, &out.view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: a contiguous writable buffer is wanted", name);
        return false;
    }
    out.held = true;
    const bool fits = out.view.ndim == 2 && out.view.format && !std::strcmp(out.view.format, "f") && out.view.shape[0] >= 1 &&
                      out.view.shape[0] < (Py_ssize_t(1) << 31) && out.view.shape[1] >= 1 && out.view.shape[1] % LANES == 0;
    if (!fits) PyErr_Format(PyExc_ValueError, "%s: float32 of shape (words, a multiple of %d) is wanted", name, int(LANES));
    return fits;
}

struct Arrays {
    Buffer rows, outs;
    Tables tables{};
    bool read(PyObject *prows, PyObject *pouts) {
        if (!take_table(prows, "rows", rows) || !take_table(pouts, "outs", outs)) return false;
        tables = {static_cast<float *>(rows.view.buf), static_cast<float *>(outs.view.buf), size_t(rows.view.shape[0]), size_t(rows.view.shape[1])};
        const bool fits = rows.view.shape[0] == outs.view.shape[0] && rows.view.shape[1] == outs.view.shape[1];
        if (!fits) PyErr_SetString(PyExc_ValueError, "rows and outs: equal shapes are wanted");
        return fits;
    }
};

bool below(const Buffer &whole, size_t most, const char *name) {
    size_t n = 1;
    for (int i = 0; i < whole.view.ndim; ++i) n *= size_t(whole.view.shape[i]);
    bool fits = true;
    for (size_t i = 0; fits && i < n; ++i) fits = whole.whole()[i] >= 0 && size_t(whole.whole()[i]) < most;
    if (!fits) PyErr_Format(PyExc_ValueError, "%s: each from 0 to below the number of words is wanted", name);
    return fits;
}

PyObject *train(PyObject *, PyObject *args) {
    PyObject *pids, *plengths, *pkeep, *pshare, *pother, *prows, *pouts;
    Run run{};
    long long window, negatives;
    unsigned long long seed;
    if (!PyArg_ParseTuple(args, "OOOOOOOLLddK", &pids, &plengths, &pkeep, &pshare, &pother, &prows, &pouts, &window, &negatives, &run.first, &run.last, &seed))
        return nullptr;
    Buffer ids, lengths, keep, share, other;
    Arrays arrays;
    if (!arrays.read(prows, pouts)) return nullptr;
    const Py_ssize_t V = Py_ssize_t(arrays.tables.words);
    if (!take(pids, "ids", 'q', {-1}, false, ids) || !take(plengths, "lengths", 'q', {-1}, false, lengths) || !take(pkeep, "keep", 'd', {V}, false, keep) ||
        !take(pshare, "share", 'd', {V}, false, share) || !take(pother, "other", 'q', {V}, false, other) || !below(ids, size_t(V), "ids") ||
        !below(other, size_t(V), "other"))
        return nullptr;
    long long left = ids.view.shape[0];
    bool fits = window >= 1 && window < (1 << 20) && negatives >= 1 && negatives < (long long)MOST && std::isfinite(run.first) && std::isfinite(run.last);
    for (Py_ssize_t s = 0; fits && s < lengths.view.shape[0]; ++s) fits = lengths.whole()[s] >= 0 && (left -= lengths.whole()[s]) >= 0;
    if (!fits || left) {
        PyErr_SetString(PyExc_ValueError, "lengths that sum to the ids, a window, 1 to 255 negatives and finite rates are wanted");
        return nullptr;
    }
    run.ids = ids.whole(), run.lengths = lengths.whole(), run.sequences = size_t(lengths.view.shape[0]), run.keep = keep.numbers();
    run.window = size_t(window), run.negatives = size_t(negatives), run.seed = seed;
    double total = 0;
    long long pairs = 0;
    PyObject *done = unlocked([&] {
        for (Py_ssize_t v = 0; v < V; ++v) {
            const double part = std::min(std::max(share.numbers()[v], 0.0), 1.0);
            run.noise.slots.push_back({std::uint32_t(part * 4294967295.0), std::uint32_t(other.whole()[v])});
        }
        train_on(arrays.tables, run, total, pairs);
    });
    if (!done) return nullptr;
    Py_DECREF(done);
    return Py_BuildValue("(dL)", total, pairs);
}

PyObject *steps(PyObject *, PyObject *args) {
    PyObject *pcentres, *ptargets, *prows, *pouts;
    double rate;
    if (!PyArg_ParseTuple(args, "OOOOd", &pcentres, &ptargets, &prows, &pouts, &rate)) return nullptr;
    Buffer centres, targets;
    Arrays arrays;
    if (!arrays.read(prows, pouts) || !take(pcentres, "centres", 'q', {-1}, false, centres) ||
        !take(ptargets, "targets", 'q', {centres.view.shape[0], -1}, false, targets) || !below(centres, arrays.tables.words, "centres") ||
        !below(targets, arrays.tables.words, "targets"))
        return nullptr;
    const size_t n = size_t(centres.view.shape[0]), width = size_t(targets.view.shape[1]);
    if (width < 1 || width > MOST || !std::isfinite(rate)) {
        PyErr_SetString(PyExc_ValueError, "targets: 1 to 256 a centre, and a finite rate are wanted");
        return nullptr;
    }
    double total = 0;
    PyObject *done = unlocked([&] {
        std::vector<std::uint32_t> narrow(targets.whole(), targets.whole() + n * width);
        step_each(arrays.tables, centres.whole(), narrow.data(), n, width, float(rate), total);
    });
    if (!done) return nullptr;
    Py_DECREF(done);
    return Py_BuildValue("d", total);
}

PyMethodDef methods[] = {
    {"train", train, METH_VARARGS,
     "train(ids, lengths, keep, share, other, rows, outs, window, negatives, first, last, seed)\n\n"
     "One pass over sequences of words. keep (V,): probability that an occurrence stays. share, other (V,): alias table of the\n"
     "noise. rows, outs float32 (V, stride): moved in place. Windows are uniform from 1 to window; the rate goes from first to\n"
     "last. Returns the sum over pairs of log sigma(positive) + sum log sigma(-negative), and the number of pairs."},
    {"steps", steps, METH_VARARGS,
     "steps(centres, targets, rows, outs, rate)\n\n"
     "Gradient steps of given pairs, one after the other; targets (n, 1 + negatives): the context, then the negatives.\n"
     "Returns the sum of their log-likelihoods, each before its step."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_skipgram", "Skip-gram with negative sampling.", -1, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__skipgram(void) { return PyModule_Create(&module); }
